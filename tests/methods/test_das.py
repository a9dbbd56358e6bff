"""DAS: one particle is guided sampling, and many have the tilted model's mean."""

import pytest
import torch
from derivative import exact
from gaussian_toy import STEPS, Gaussian, distribution

from benchmarks.api import Context, Scale, UserError
from benchmarks.streams import Streams
from methods.das import DAS, Config

SMALL = {"sampling_steps": 3, "guidance": 3.0}


def test_its_steps_are_those_of_the_equations(context: Context):
    """One particle: nothing to choose, so that all that is left is the push of the proposal."""
    exact(context)
    method = DAS(Config(**SMALL, candidates=1, alpha=0.5), context)
    (found,) = method.draw(["cat"], [5])
    totals = context.backbone.ledger.totals()
    backbone, sampler, streams = context.backbone, method.sampler, context.streams
    condition = backbone.encode(["cat"])
    x = streams.normal("evaluation", 0, [5], backbone.latent_shape)
    z = streams.normal("particle", 0, [5], (3, *backbone.latent_shape))
    for i in range(3):
        x = x.detach().requires_grad_()
        output = backbone.predict(x, sampler.timesteps[i], condition, 3.0)
        r = context.reward(backbone.decode(sampler.x0(i, output, x)), ["cat"]) / (0.5 * 0.05)
        (slope,) = torch.autograd.grad(r.sum(), x)
        rising = min(1.008 ** (100 * (i + 1) / 3) - 1, 1) if i < 2 else 1
        variance = sampler.std(i) ** 2
        x = (
            sampler.mean(i, output, x).detach()
            + variance * rising * slope
            + variance**0.5 * z[:, i]
        )
    torch.testing.assert_close(found, backbone.decode(x)[0].detach())
    assert totals["nfe"] == totals["denoiser_backward"] == 3 * 2
    assert totals["images"] == totals["reward_queries"] == 3 + 1
    assert totals["reward_gradients"] == 3


def test_many_particles_are_draws_of_the_tilted_model():
    """p exp(2 x) of a Gaussian p has a mean that is known."""
    backbone = Gaussian()
    context = Context(
        backbone=backbone,
        reward=lambda images, prompts: 8 * images.flatten(1).mean(1) - 4,  # the latents themselves
        prompts=lambda step, count: [""] * count,
        streams=Streams(0),
        scale=lambda: Scale(mean=0.0, deviation=5.0),
    )
    config = Config(sampling_steps=STEPS, guidance=1.0, candidates=2000, alpha=0.1)
    method = DAS(config, context)
    images, weights = method.particles("", 0)
    shares = weights.softmax(0)
    mean, variance = distribution(backbone, method.sampler)
    x = 8 * images.double().flatten(1).mean(1) - 4
    assert float(shares @ x) == pytest.approx(mean + 2 * variance, abs=0.03)
    assert float(x.std()) > 0.2 and mean + 2 * variance > 0.3


def test_weights_that_are_too_uneven_are_made_even(context: Context):
    method = DAS(Config(**SMALL, candidates=4), context)
    even = torch.zeros(4, dtype=torch.float64)
    weights, kept = method.resampled(even, 0, 0)
    assert weights is even and kept.tolist() == [0, 1, 2, 3]
    one = torch.tensor([0.0, 0.0, 50.0, 0.0]).double()
    weights, kept = method.resampled(one, 0, 0)
    assert kept.tolist() == [2, 2, 2, 2] and not weights.any()
    two = torch.tensor([0.75, 0.25, 0.0, 0.0]).double().log()  # worth 1.6 particles
    _, kept = method.resampled(two, 0, 0)
    assert kept.tolist() == [0, 0, 0, 1]


def test_lambda_rises_from_zero_to_one(context: Context):
    for steps in (20, 100):
        method = DAS(Config(sampling_steps=steps), context)
        rise = [method.temper(i) for i in range(steps + 1)]
        assert rise[0] == 0 and rise == sorted(rise) and rise[-1] == 1
        assert rise[steps // 2] == pytest.approx(1.008**50 - 1)


def test_what_cannot_be_is_refused(context: Context):
    for changes, message in (
        ({"candidates": 0}, "choose 1 or more"),
        ({"alpha": 0.0}, "above 0"),
        ({"eta": 0.0}, "nothing to weigh"),
    ):
        with pytest.raises(UserError, match=message):
            DAS(Config(**SMALL, **changes), context)
