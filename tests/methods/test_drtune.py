"""DRTune: its gradient is that of the recursion whose denoiser sees frozen latents."""

import itertools

import pytest
import torch
from derivative import directional, exact

from benchmarks.api import Context
from methods.drtune import Config, DRTune

SMALL = {"batch_size": 2, "micro_batch": 2, "sampling_steps": 5, "guidance": 3.0}


def test_gradient_equals_finite_differences(context: Context, gradients, compared):
    exact(context)
    method = DRTune(Config(**SMALL, k=2), context)
    chosen = method.chosen(0)
    result = method.step(0)
    backbone, sampler = context.backbone, method.sampler
    prompts, condition = context.prompts(0, 2), backbone.encode(context.prompts(0, 2))
    seen, frozen = [], []
    with torch.no_grad():
        latents = context.streams.normal("noise", 0, range(2), backbone.latent_shape)
        for i in range(len(chosen)):
            seen.append(latents)
            frozen.append(backbone.predict(latents, sampler.timesteps[i], condition, 3.0))
            latents = sampler.mean(i, frozen[-1], latents)

    def loss() -> float:
        latents = x0 = seen[0]
        for i, learning in enumerate(chosen):
            output = frozen[i]
            if learning:
                output = backbone.predict(seen[i], sampler.timesteps[i], condition, 3.0)
            x0 = sampler.x0(i, output, latents)
            latents = sampler.mean(i, output, latents)
        return -float(context.reward(backbone.decode(x0), prompts).mean())

    with torch.no_grad():
        assert result.loss == pytest.approx(loss(), rel=1e-9)
    (found,) = gradients
    derivative, direction = directional(context, loss, found)
    compared("derivative", found @ direction, derivative, 1e-5)


def test_which_steps_carry_gradient(context: Context):
    method = DRTune(Config(**(SMALL | {"sampling_steps": 25})), context)
    drawn = [method.chosen(step) for step in range(200)]
    assert {len(chosen) for chosen in drawn} == set(range(16, 26))  # the last 10 of 25 may end it
    for chosen in drawn:
        steps = [i for i, learning in enumerate(chosen) if learning]
        stride = len(chosen) // 3
        assert [b - a for a, b in itertools.pairwise(steps)] == [stride, stride]
    first = {chosen.index(True) for chosen in drawn}
    assert first == set(range(9))  # as far as 24 - 2 * 8
    always = DRTune(Config(**SMALL, k=9, early_stop=0.0), context)
    assert always.chosen(0) == [True] * 5


def test_every_pass_is_counted(context: Context):
    """Backward passes end at the weights: through none of them goes a gradient."""
    ledger, method = context.backbone.ledger, DRTune(Config(**SMALL, k=2), context)
    taken = len(method.chosen(0))
    method.step(0)
    totals, counts = ledger.totals(), {kind.name: n for kind, n in ledger.counts.items()}
    assert totals["nfe"] == 2 * 2 * taken
    assert counts["denoiser_backward_weights_only"] == totals["denoiser_backward"] == 2 * 2 * 2
    assert totals["images"] == totals["reward_queries"] == totals["reward_gradients"] == 2
