"""Our methods as contenders: an optimizer step each, as the harness asks for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from benchmarks import registry
from benchmarks.api import Context, Reward, Scale
from benchmarks.backbone.checkpointing import Plan, recompute_blocks
from benchmarks.backbone.lora_sd import LoraSD
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

    def __init__(self, backbone: LoraSD, *, batch: int, steps: int, guidance: float) -> None:
        self.backbone = backbone
        self.common = {
            "batch_size": batch,
            "samples_per_round": batch,
            "micro_batch": batch,
            "sampling_steps": steps,
            "guidance": guidance,
            "eta": 1.0,
        }

    def alignprop(self, k: int, plan: Plan) -> Callable[[], None]:
        """An optimizer step through the last ``k`` sampling steps under an activation plan."""
        return self._step("alignprop", plan, truncation={"mode": "fixed", "k": k})

    def ddpo(self, plan: Plan) -> Callable[[], None]:
        """A round of sampling and one update."""
        return self._step("ddpo", plan, updates_per_round=1)

    def _step(self, name: str, plan: Plan, **changes: Any) -> Callable[[], None]:
        cls: Any = registry.methods.get(name)
        fields = {k: v for k, v in self.common.items() if k in cls.Config.__dataclass_fields__}
        config = override(cls.Config(), fields | changes, name)
        context = Context(
            backbone=self.backbone,
            reward=self.backbone.ledger.counted(Brightness()),
            prompts=lambda step, count: [PROMPTS[i % len(PROMPTS)] for i in range(count)],
            streams=Streams(0),
            scale=lambda: Scale(mean=0.0, deviation=1.0),
        )
        method, steps = cls(config, context), itertools.count()

        def run() -> None:
            self.backbone.memory = plan  # not use(): prices are of no interest here
            for module in (self.backbone.unet, self.backbone.vae):
                recompute_blocks(module, plan == "unet")
            method.step(next(steps))

        return run
