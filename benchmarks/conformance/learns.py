"""Does a method learn? Training on a toy reward raises it on unseen prompts; without meaning, not.

The check trains on the embedded model, on three animals with their backgrounds left open, which
gives pictures of one prompt very different rewards. It takes minutes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmarks.config import load_task
from benchmarks.conformance.contract import Broken, Darkness, bench_of, preset_with
from benchmarks.harness.evaluate import pictures

PROMPTS = "animals"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How a method is trained to see whether it learns: by default short and with long strides."""

    changes: Mapping[str, Any] = field(
        default_factory=lambda: {"sampling_steps": 5, "earliest": 3, "latest": 4}
    )
    """Of the preset's configuration, where the method has such fields."""
    stride: float = 5
    """Times the preset's learning rate."""
    flops: float = 3e12


TRIAL = Trial()


def learns(name: str, trial: Trial | None = None) -> None:
    """The toy reward rises on unseen prompts, and by more than that of a run without meaning.

    Differences are paired by picture, and must exceed three standard errors of the pictures' mean.
    """
    trial = trial or TRIAL
    gain, control = (_gain(name, Darkness(control=c), trial) for c in (False, True))
    for what, difference in (("over the base model", gain), ("over the control", gain - control)):
        error = difference.std() / len(difference) ** 0.5
        if not difference.mean() > 3 * error:
            raise Broken(
                f"the toy reward rises by {difference.mean():.3f} +- {error:.3f} {what}: does the "
                "loss have the right sign, and does the gradient arrive?"
            )


def _gain(name: str, reward: Darkness, trial: Trial) -> Tensor:
    """How much training on ``reward`` raises the toy reward of each picture of unseen prompts.

    They are sampled with the guidance that the method samples with: what a policy learns without
    guidance, guidance distorts.
    """
    config, task = preset_with(name, dict(trial.changes)), load_task(PROMPTS)
    optimizer: Any = getattr(config, "optimizer", None)
    if hasattr(optimizer, "lr"):
        longer = dataclasses.replace(optimizer, lr=trial.stride * optimizer.lr)
        config = dataclasses.replace(config, optimizer=longer)
    this = bench_of(name, config, reward, task.train[:3])
    steps, guidance = trial.changes["sampling_steps"], getattr(config, "guidance", 1.0)
    prompts = [p for p in task.unseen for _ in range(16)]

    def score() -> Tensor:
        with this.backbone.ledger.paused():
            return Darkness()(pictures(this.backbone, prompts, steps, guidance), prompts)

    before, step = score(), 0
    while this.backbone.ledger.flops < trial.flops:
        this.method.step(step)
        step += 1
    return score() - before
