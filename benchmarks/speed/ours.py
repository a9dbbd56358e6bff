"""Our methods as contenders: an optimizer step each, as the harness asks for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from benchmarks import registry
from benchmarks.api import Context, Keep, Reward, Sampling
from benchmarks.backbone.base import BaseBackbone
from benchmarks.config import load_task, override
from benchmarks.streams import Streams

PROMPTS = load_task("animals").train


class Brightness(Reward):
    """A reward that costs next to nothing: the mean pixel value."""

    unit, reference, differentiable = "pixel range", "ours", True

    def __init__(self, device: Any = "cpu") -> None: ...

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.float().mean((1, 2, 3))


class Ours:
    """Methods on one backbone, with the same batch, steps and guidance."""

    def __init__(self, backbone: BaseBackbone, *, batch: int, steps: int, guidance: float) -> None:
        self.backbone, self.batch, self.steps, self.guidance = backbone, batch, steps, guidance

    def alignprop(self, k: int, keep: Keep) -> Callable[[], None]:
        """An optimizer step through the last ``k`` sampling steps."""
        return self._step("alignprop", keep, eta=1.0, truncation={"mode": "fixed", "k": k})

    def ddpo(self, keep: Keep) -> Callable[[], None]:
        """A round of sampling and one update."""
        return self._step("ddpo", keep, eta=1.0, updates_per_round=1)

    def _step(self, name: str, keep: Keep, **changes: Any) -> Callable[[], None]:
        cls: Any = registry.methods.get(name)
        chosen: Sampling = override(cls.Config(), changes, name)
        config = replace(
            chosen.resampled(self.steps).resized(self.batch),
            micro_batch=self.batch,
            guidance=self.guidance,
        )
        context = Context(
            backbone=self.backbone,
            reward=self.backbone.ledger.counted(Brightness()),
            prompts=lambda step, count: [PROMPTS[i % len(PROMPTS)] for i in range(count)],
            streams=Streams(0),
        )
        method, steps = cls(config, context), itertools.count()

        def run() -> None:
            self.backbone.use(keep)
            method.step(next(steps))

        return run
