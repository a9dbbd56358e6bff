"""One sampling step equals diffusers' own, and its log-probability is a Gaussian's."""

import pytest
import torch
from diffusers import DDIMScheduler

from benchmarks.api import UserError
from benchmarks.backbone.ddim import as_ddim, ddim

SHAPE = (2, 4, 8, 8)


def scheduler(prediction: str, **changes) -> DDIMScheduler:
    zero = prediction == "v_prediction"
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "prediction_type": prediction,
        "rescale_betas_zero_snr": zero,
        "timestep_spacing": "trailing" if zero else "leading",
        "steps_offset": 0 if zero else 1,
        "set_alpha_to_one": False,
    }
    return DDIMScheduler(**(settings | changes))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("to_one", [False, True])
def test_mean_equals_the_schedulers_step(prediction: str, to_one: bool):
    theirs = scheduler(prediction, set_alpha_to_one=to_one)
    ours = ddim(theirs, 10, eta=0.0)
    generator = torch.Generator().manual_seed(0)
    for i, timestep in enumerate(ours.timesteps):
        latents, output = torch.randn(2, *SHAPE, generator=generator)
        expected = theirs.step(output, timestep, latents).prev_sample
        torch.testing.assert_close(ours.mean(i, output, latents), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stochastic_step_equals_the_schedulers(prediction: str):
    theirs = scheduler(prediction)
    ours = ddim(theirs, 10, eta=1.0)
    # In single precision its 1 - alpha - std^2 cancels in the first step, to NaN on some machines.
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    theirs.final_alpha_cumprod = theirs.final_alpha_cumprod.double()
    generator = torch.Generator().manual_seed(0)
    for i, timestep in enumerate(ours.timesteps):
        latents, output, noise = torch.randn(3, *SHAPE, generator=generator)
        expected = theirs.step(output, timestep, latents, eta=1.0, variance_noise=noise).prev_sample
        found = ours.mean(i, output, latents) + ours.std(i) * noise
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)


def test_every_stochastic_step_has_a_density():
    for to_one in (False, True):
        sampler = ddim(scheduler("v_prediction", set_alpha_to_one=to_one), 20, eta=1.0)
        assert min(sampler.std(i) for i in range(20)) > 0


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_every_spacing_and_number_of_steps_is_diffusers_or_refused(prediction: str, spacing: str):
    generator = torch.Generator().manual_seed(0)
    latents, output = torch.randn(2, 1, 1, 2, 2, generator=generator).double()
    for steps in (1, 3, 7, 300, 699, 999, 1000):
        theirs = scheduler(prediction, timestep_spacing=spacing, steps_offset=1)
        theirs.alphas_cumprod = theirs.alphas_cumprod.double()
        try:
            ours = ddim(as_ddim(theirs), steps, eta=0.0)
        except UserError:
            theirs.set_timesteps(steps)  # theirs reads past the table's ends
            assert int(theirs.timesteps[0]) >= 1000 or int(theirs.timesteps[-1]) < 0
            continue
        theirs.set_timesteps(steps)
        assert ours.timesteps == theirs.timesteps.tolist()
        for i in {0, steps // 2, steps - 1}:
            expected = theirs.step(output, ours.timesteps[i], latents).prev_sample
            found = ours.mean(i, output, latents)
            torch.testing.assert_close(found, expected.to(found), rtol=1e-4, atol=1e-4)


def test_timesteps_past_the_last_are_refused():
    theirs = as_ddim(scheduler("epsilon"))
    assert ddim(theirs, 999, 0.0).timesteps[0] == 999
    with pytest.raises(UserError, match="steps_offset 1 they are 1000, from timestep 1000 to 1"):
        ddim(theirs, 1000, 0.0)
    assert len(ddim(as_ddim(scheduler("epsilon", steps_offset=0)), 1000, 0.0)) == 1000
    for wrong in (0, -1, 1001):
        with pytest.raises(UserError, match="choose 1 to 1000"):
            ddim(theirs, wrong, 0.0)


def test_noise_is_not_predicted_from_nothing_but_noise():
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(UserError, match="with prediction_type epsilon nothing can be drawn"):
        ddim(scheduler("epsilon", **options), 10, 0.0)


def test_log_prob_is_the_mean_gaussian_log_density():
    sampler = ddim(scheduler("epsilon"), 10, eta=1.0)
    value, mean = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(mean, sampler.std(3))
    expected = normal.log_prob(value).flatten(1).mean(1)
    torch.testing.assert_close(sampler.log_prob(3, value, mean), expected)
