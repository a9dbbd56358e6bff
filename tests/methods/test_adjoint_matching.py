"""Adjoint Matching: its equations, and a Gaussian model that reaches the known tilted one."""

import math
from typing import Any

import pytest
import torch
from derivative import directional, exact
from gaussian_toy import STEPS, Gaussian, distribution
from torch import Tensor

from benchmarks.api import AdamW, Context, Scale, UserError
from benchmarks.streams import Streams
from methods.adjoint_matching import AdjointMatching, Config

SMALL = {"batch_size": 2, "micro_batch": 2, "sampling_steps": 4, "guidance": 1.0}


def as_the_base(context: Context) -> None:
    """LoRA matrices whose product is zero."""
    for name, parameter in context.backbone.denoiser.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()


def test_gradient_equals_finite_differences(context: Context, gradients, compared):
    """Where model and base are one, adjoints are the reward's gradients through the rollout."""
    exact(context)
    as_the_base(context)
    method = AdjointMatching(Config(**SMALL, reward_weight=3.0, matched_steps=3), context)
    sampler, backbone, scale = method.sampler, context.backbone, context.scale()
    prompts, matched = context.prompts(0, 2), method.matched(0)
    result = method.step(0)
    condition = backbone.encode(prompts)
    shape = backbone.latent_shape
    noise = context.streams.normal("eta", 0, range(2), (4, *shape))

    def forward(k: int, latents: Tensor) -> Tensor:
        output = backbone.predict(latents, sampler.timesteps[k], condition, 1.0)
        return sampler.mean(k, output, latents)

    path = [context.streams.normal("noise", 0, range(2), shape)]
    for k in range(4):
        path.append((forward(k, path[-1]) + sampler.std(k) * noise[:, k]).detach())
    adjoints = []
    for k in range(4):  # of x_{k+1}
        latents = start = path[k + 1].clone().requires_grad_()
        for i in range(k + 1, 4):
            latents = forward(i, latents) + sampler.std(i) * noise[:, i]
        z = (context.reward(backbone.decode(latents), prompts) - scale.mean) / scale.deviation
        adjoints.append(torch.autograd.grad(-3.0 * z.sum(), start)[0])
    base = [forward(k, path[k]).detach() for k in range(4)]

    def loss() -> float:
        errors = [
            ((forward(k, path[k]) - base[k]) / sampler.std(k) + sampler.std(k) * adjoints[k])
            for k in matched
        ]
        return float(torch.stack(errors).detach().square().mean())

    assert result.loss == pytest.approx(loss(), rel=1e-9)
    (found,) = gradients
    derivative, direction = directional(context, loss, found)
    compared("derivative", found @ direction, derivative, 1e-5)


def test_without_reward_the_model_is_left_alone(context: Context, gradients):
    """And one that has left the base model is called back."""
    config = Config(**(SMALL | {"guidance": 3.0}), reward_weight=0.0)
    away = AdjointMatching(config, context).step(0)
    assert away.loss > 0 and gradients.pop().norm() > 0
    as_the_base(context)
    result = AdjointMatching(config, context).step(0)
    assert result.loss == 0 and gradients.pop().norm() == 0


def test_every_pass_is_counted(context: Context):
    method = AdjointMatching(Config(**(SMALL | {"guidance": 3.0})), context)
    ledger, first = context.backbone.ledger, method.matched(0)[0]
    matched = len(method.matched(0))
    method.step(0)
    totals = ledger.totals()
    assert totals["nfe"] == 2 * (4 * 2 + (4 - first) + matched)  # the trajectory is guided
    assert totals["denoiser_backward"] == 2 * ((4 - first - 1) + matched)
    assert totals["images"] == totals["reward_queries"] == totals["reward_gradients"] == 2


def test_half_of_the_matched_steps_are_early(context: Context):
    method = AdjointMatching(Config(**(SMALL | {"sampling_steps": 20})), context)
    drawn = [method.matched(step) for step in range(50)]
    assert all(sum(k < 12 for k in ks) == 2 and len(set(ks)) == 4 for ks in drawn)
    assert {k for ks in drawn for k in ks} == set(method.sampler.scored)


def test_outliers_are_left_out(context: Context, gradients):
    method = AdjointMatching(Config(**SMALL, quantile=0.5), context)
    assert method.step(0).extra["kept"] == 1  # there is no bound yet
    first = method.bound
    method.bound = 0.0
    result = method.step(0)
    assert result.extra["kept"] == 0 and gradients[-1].norm() == 0
    assert method.bound == pytest.approx(0.1 * first)  # a moving average of the median


def test_what_cannot_be_matched_is_refused(context: Context):
    for changes, message in (
        ({"eta": 0.0}, "nothing to control"),
        ({"matched_steps": 1}, "one early and one late"),
    ):
        with pytest.raises(UserError, match=message):
            AdjointMatching(Config(**SMALL, **changes), context)


@pytest.mark.parametrize(("slope", "curvature"), [(1.0, 0.0), (-0.5, 2.0)])
def test_a_gaussian_becomes_the_tilted_one(slope: float, curvature: float):
    """p exp(r) with r = slope x - curvature x^2 / 2 is a Gaussian, too."""
    backbone = Gaussian()

    def reward(images: Tensor, prompts: Any) -> Tensor:
        x = 8 * images.flatten(1).mean(1) - 4
        return slope * x - curvature * x**2 / 2

    context = Context(
        backbone=backbone,
        reward=reward,
        prompts=lambda step, count: [""] * count,
        streams=Streams(0),
        scale=lambda: Scale(mean=0.0, deviation=0.5),
    )
    config = Config(
        batch_size=64,
        micro_batch=64,
        sampling_steps=STEPS,
        guidance=1.0,
        reward_weight=0.5,
        matched_steps=2 * STEPS,  # all
        optimizer=AdamW(lr=0.1, weight_decay=0.0, clip=1e9),
    )
    method = AdjointMatching(config, context)
    mean, variance = distribution(backbone, method.sampler)
    for lr in (0.1, 0.02):
        method.optimizer.adamw.param_groups[0]["lr"] = lr
        for step in range(30):
            method.bound = math.inf  # nothing is left out
            method.step(step)
    precision = 1 / variance + curvature
    expected = (mean / variance + slope) / precision
    found = distribution(backbone, method.sampler)
    # At so few steps the adjoint before the step, a_k, would reach 68 % of the shift.
    assert found[0] - mean == pytest.approx(expected - mean, rel=0.04)
    assert found[1] == pytest.approx(1 / precision, rel=0.08)
