"""One sampling step equals diffusers' own, and its log-probability is a Gaussian's."""

import pytest
import torch
from diffusers import DDIMScheduler

from benchmarks.backbone.ddim import ddim

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


def test_log_prob_is_the_mean_gaussian_log_density():
    sampler = ddim(scheduler("epsilon"), 10, eta=1.0)
    value, mean = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(mean, sampler.std(3))
    expected = normal.log_prob(value).flatten(1).mean(1)
    torch.testing.assert_close(sampler.log_prob(3, value, mean), expected)
