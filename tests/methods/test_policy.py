"""Replayed actions: ratios of exactly 1, no step lost, log-probs of the latents as stored."""

import itertools
from typing import Any

import pytest
import torch
from by_hand import SMALL, World

from benchmarks import registry
from benchmarks.api import Context
from methods._policy import PolicyMethod, clipped_surrogate

POLICIES = ("grpo", "mixgrpo", "dpok", "d3po", "prdp")
ROUND = {"samples_per_round": 8, "samples_per_prompt": 4, "updates_per_round": 2}


def made(name: str, context: Context, **settings: Any) -> PolicyMethod:
    """A small method; of a variant, what it sets."""
    cls = registry.methods.get(name)
    variant = {"window": 2} if name == "mixgrpo" else {}
    whole = {"sampling_steps": 4, "guidance": 2.0, "timestep_fraction": 1.0, "inner_epochs": 1}
    config = cls.Config(**(ROUND | variant | whole | settings))
    return cls(config, context)


def test_before_the_first_update_ratios_are_exactly_one_and_no_step_is_lost(context: Context):
    context.backbone.use("latents")  # every action is predicted once more
    for name, micro_batch, updates in itertools.product(POLICIES, (2, 4), (1, 2)):
        method = made(name, context, micro_batch=micro_batch, updates_per_round=updates)
        seen: list[tuple[int, int]] = []
        replay = method.replay

        def spy(rows, column, replay=replay, method=method, seen=seen, **options):
            if method.round is not None:  # not the base model's, while the round is drawn
                seen.extend((row, method.sampler.scored[column]) for row in rows)
            return replay(rows, column, **options)

        method.replay = spy  # type: ignore[method-assign]
        result = method.step(0)
        assert result.extra["ratio_deviation"] == 0.0 and result.grad_norm > 0
        rows = range(8 // updates)
        assert sorted(seen) == [(row, i) for row in rows for i in method.sampler.scored]
        if updates == 2:
            assert method.step(1).extra["ratio_deviation"] > 0.0


def test_kept_forward_passes_give_the_gradient_of_repeated_ones(
    context: Context, gradients: list[torch.Tensor], compared
):
    for name in ("grpo", "d3po", "prdp"):
        gradients.clear()
        for keep in ("all", "latents"):
            context.backbone.use(keep)
            method = made(name, context, micro_batch=4, updates_per_round=1)
            assert method.keeps() == (keep == "all")
            method.step(0)
            assert method.kept == []
        compared(f"{name}, LoRA gradient by kept forward passes", *gradients, 1e-5)


def test_micro_batches_change_nothing(context: Context):
    start = context.backbone.weights()
    before = torch.cat([v.flatten() for v in start.values()])
    for name in POLICIES:
        ends = []
        for micro_batch in (2, 4):
            context.backbone.load_weights(start)
            method = made(name, context, micro_batch=micro_batch, inner_epochs=2)
            for step in range(3):  # the third shuffles the round
                method.step(step)
            ends.append(torch.cat([v.flatten() for v in context.backbone.weights().values()]))
        assert (ends[0] - ends[1]).norm() < 1e-2 * (ends[0] - before).norm() > 0, name


def test_log_probs_are_those_of_the_latents_as_stored():
    world = World()
    method = made("prdp", world.context, **SMALL)
    data = method.sample(0)
    assert method.sampler.scored == (0, 2)
    with torch.no_grad():
        torch.testing.assert_close(data.log_probs, world.log_probs(data, (0, 2)))
        base = world.log_probs(data, (0, 2), base=True)
    torch.testing.assert_close(data.reference, base)
    assert (data.log_probs - base).abs().min() > 1e-6


def test_the_surrogate_is_trls():
    trl = pytest.importorskip("trl", "0.23")
    generator = torch.Generator().manual_seed(0)
    ratio, advantages = (
        torch.rand(8, generator=generator) + 0.5,
        torch.randn(8, generator=generator),
    )
    theirs = trl.DDPOTrainer.loss(None, advantages, 0.2, ratio)
    torch.testing.assert_close(clipped_surrogate(ratio, advantages, 0.2).mean(), theirs)
