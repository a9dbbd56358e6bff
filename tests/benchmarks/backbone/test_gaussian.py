"""Densities of sampling steps, and which of them a policy gradient may add up."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from benchmarks.backbone.ddim import ddim
from benchmarks.backbone.gaussian import log_density, scored, sensitivity, shares

#: Stable Diffusion's schedule, and that of the embedded model.
SD15 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
EMBEDDED = SD15 | {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def test_the_density_is_that_of_a_gaussian_averaged_over_dimensions():
    value, mean = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Normal(mean, 0.3).log_prob(value).flatten(1).mean(1)
    torch.testing.assert_close(log_density(value, mean, 0.3), expected)


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("settings", [SD15, EMBEDDED], ids=["sd15", "embedded"])
def test_no_scored_step_drowns_the_others(settings: dict, steps: int):
    sampler = ddim(DDIMScheduler(**settings), steps, 1.0)
    assert len(sampler.scored) >= steps - 1
    assert max(shares(sampler, sampler.scored)) <= 0.5


def test_published_samplers_keep_every_step():
    assert ddim(DDIMScheduler(**SD15), 50, 1.0).scored == tuple(range(50))


def test_the_last_step_of_few_trailing_ones_had_nearly_all_of_the_gradient():
    sampler = ddim(DDIMScheduler(**EMBEDDED), 10, 1.0)
    assert shares(sampler, range(10))[-1] == pytest.approx(0.978, abs=0.001)
    assert sampler.scored == tuple(range(9))


def test_deterministic_steps_are_not_scored():
    assert ddim(DDIMScheduler(**SD15), 50, 0.0).scored == ()
    linspace = SD15 | {"timestep_spacing": "linspace", "steps_offset": 0}
    sampler = ddim(DDIMScheduler(**linspace), 10, 1.0)
    assert sampler.std(9) == 0 and 9 not in sampler.scored and len(sampler.scored) >= 8


def test_sensitivity_is_the_derivative_of_the_mean_in_deviations():
    sampler = ddim(DDIMScheduler(**EMBEDDED), 10, 1.0)
    latents, output = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).double()
    output.requires_grad_()
    sampler.mean(3, output, latents).sum().backward()
    for slope in output.grad.tolist():
        assert sensitivity(sampler, 3) == pytest.approx(abs(slope) / sampler.std(3), rel=1e-5)


def test_leaving_out_stops_at_one_step():
    class Two:
        """Of which one holds nearly all."""

        def __len__(self) -> int:
            return 2

        def std(self, i: int) -> float:
            return (1.0, 0.01)[i]

        def mean(self, i: int, output: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            return output + latents

    assert scored(Two()) == (0,) and math.isclose(sum(shares(Two(), (0, 1))), 1.0)
