"""Flow matching's sampler: diffusers' step to the last digit, Flow-GRPO's by its own derivation."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_families import tiny_flux, tiny_sd3

from benchmarks.api import UserError
from benchmarks.backbone.flow import Flow
from benchmarks.backbone.flux import Flux
from benchmarks.backbone.gaussian import shares
from benchmarks.backbone.sd3 import StableDiffusion3
from benchmarks.compute.ledger import Ledger


def sampler(steps: int, eta: float, shift: float = 3.0) -> Flow:
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(steps)
    return Flow(theirs.timesteps.tolist(), theirs.sigmas.double().tolist(), eta)


@pytest.mark.parametrize("options", [{}, {"use_karras_sigmas": True}, {"shift_terminal": 0.1}])
def test_the_deterministic_step_is_diffusers_to_the_last_digit(options: dict):
    for steps in (1, 2, 10, 28):
        pipeline = tiny_sd3()
        config = dict(pipeline.scheduler.config) | options
        theirs = pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        if steps == 1 and options:
            continue  # theirs divides by zero
        ours = StableDiffusion3(pipeline, Ledger()).sampler(steps)
        theirs.set_timesteps(steps)
        assert ours.timesteps == theirs.timesteps.tolist()
        generator = torch.Generator().manual_seed(0)
        for i, timestep in enumerate(theirs.timesteps):
            latents, output = torch.randn(2, 2, 4, 8, 8, generator=generator)
            expected = theirs.step(output, timestep, latents).prev_sample
            assert ours.std(i) == 0 and torch.equal(ours.mean(i, output, latents), expected)


def published(i: int, levels: list[float], v: torch.Tensor, x: torch.Tensor, eta: float):
    """Flow-GRPO's mean and deviation in float64, from its score: drift v - g^2 / 2 * score."""
    s, then = levels[i], levels[i + 1]
    g2 = eta**2 * s / (1 - (s if s < 1 else levels[1]))
    score = -(x + (1 - s) * v) / s  # of noise that is N(0, 1), at scale s
    return x + (v - g2 / 2 * score) * (then - s), math.sqrt(g2 * (s - then))


def test_the_stochastic_step_and_its_density_are_flow_grpos():
    ours = sampler(10, 0.7)
    v, x = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    for i in range(10):
        mean, std = published(i, ours.levels, v, x, 0.7)
        torch.testing.assert_close(ours.mean(i, v, x), mean, rtol=1e-12, atol=1e-12)
        assert ours.std(i) == pytest.approx(std, rel=1e-12) and std > 0
        value = mean + 0.5 * std
        normal = torch.distributions.Normal(mean, std).log_prob(value).flatten(1).mean(1)
        torch.testing.assert_close(ours.log_prob(i, value, mean), normal)


def spread(steps: int, eta: float, deviation: float, begin: float, end: float) -> float:
    """The variance at level ``end``, over the exact one, of a Gaussian with a known velocity.

    Clean latents are N(0, deviation^2), so at level s latents have variance
    q = (1 - s)^2 deviation^2 + s^2, and E[noise - x0 | x] = (s - (1 - s) deviation^2) / q x.
    """

    def exact(s: float) -> float:
        return (1 - s) ** 2 * deviation**2 + s**2

    levels = [begin - i * (begin - end) / steps for i in range(steps + 1)]
    ours = Flow([1000 * s for s in levels[:-1]], levels, eta)
    variance, one = exact(begin), torch.ones(1).double()
    for i, s in enumerate(levels[:-1]):
        slope = (s - (1 - s) * deviation**2) / exact(s)
        factor = float(ours.mean(i, slope * one, one))
        variance = factor**2 * variance + ours.std(i) ** 2
    return variance / exact(end)


@pytest.mark.parametrize("deviation", [0.2, 2.0])
def test_the_marginals_are_those_of_the_deterministic_sampler(deviation: float):
    """Up to the length of a step: with five times as many, a fifth of the error."""
    for end in (0.5, 0.1):
        for eta in (0.0, 0.7, 1.0):
            coarse, fine = (abs(spread(n, eta, deviation, 0.9, end) - 1) for n in (100, 500))
            assert fine < 0.01 and fine <= coarse / 4 + 1e-4


def test_the_first_step_from_pure_noise_is_too_wide_by_a_known_share():
    """Where the next level stands in for 1, a step's length does not help: (1 - eta^2 / 2)^2 +
    eta^2 = 1 + eta^4 / 4 however short it is. What follows forgets it."""
    for eta in (0.7, 1.0):
        assert spread(1, eta, 1.0, 1.0, 0.9999) == pytest.approx(1 + eta**4 / 4, rel=1e-3)
        assert abs(spread(300, eta, 1.0, 1.0, 0.1) - 1) < 0.03


def test_x0_and_noise_are_what_they_were():
    ours = sampler(7, 0.0)
    x0, noise = torch.randn(2, 2, 3, 4, 6, generator=torch.Generator().manual_seed(0)).double()
    for i in range(7):
        latents = ours.renoised(i, x0, noise)
        torch.testing.assert_close(ours.x0(i, noise - x0, latents), x0)
        torch.testing.assert_close(ours.noise(i, noise - x0, latents), noise)
        then = ours.levels[i + 1]
        moved = ours.mean(i, noise - x0, latents)
        torch.testing.assert_close(moved, (1 - then) * x0 + then * noise)


def test_no_scored_step_drowns_the_others():
    for steps, shift in ((10, 3.0), (6, 3.0), (28, 1.0)):
        ours = sampler(steps, 0.7, shift)
        assert len(ours.scored) >= steps - 1 and max(shares(ours, ours.scored)) <= 0.6
    assert sampler(10, 0.0).scored == ()


def test_noised_latents_and_their_velocity(compared):
    model = StableDiffusion3(tiny_sd3(), Ledger())
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noisy, target = model.noised(latents, noise, [100, 900])
    compared("noisy", noisy[1], 0.1 * latents[1] + 0.9 * noise[1], 1e-6)
    compared("noisy", noisy[0], 0.9 * latents[0] + 0.1 * noise[0], 1e-6)
    assert torch.equal(target, noise - latents) and model.train_timesteps == 1000


def test_what_would_be_drawn_otherwise_is_refused():
    for options in ({"stochastic_sampling": True}, {"invert_sigmas": True}):
        pipeline = tiny_flux()
        pipeline.scheduler.register_to_config(**options)
        with pytest.raises(UserError, match=f"{next(iter(options))} is True; supported: False"):
            Flux(pipeline, Ledger())
    model = Flux(tiny_flux(), Ledger())
    for wrong in (0, 1001):
        with pytest.raises(UserError, match="choose 1 to 1000"):
            model.sampler(wrong)
