"""Does a method learn? A toy reward rises on unseen prompts, and a shuffled reward does not.

The check trains on the embedded model, on three animals with their backgrounds left open, which
gives pictures of one prompt very different rewards. It takes minutes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks.api import AdamW, Sampling
from benchmarks.config import load_task
from benchmarks.conformance.contract import Broken, Darkness, bench_of, preset_config
from benchmarks.harness.evaluate import pictures

PROMPTS = "animals"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How a method is trained to see whether it learns: by default short and with long strides."""

    sampling_steps: int = 5
    change: Callable[[Any], Sampling] = lambda config: config
    """What else is changed of the preset's configuration."""
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
    task = load_task(PROMPTS)
    config = trial.change(preset_config(name).resampled(trial.sampling_steps))
    this = bench_of(name, strided(config, trial.stride), reward, task.train[:3])
    prompts = [p for p in task.unseen for _ in range(16)]

    def score() -> Tensor:
        with this.backbone.ledger.paused():
            return Darkness()(
                pictures(this.backbone, prompts, config.sampling_steps, config.guidance), prompts
            )

    before, step = score(), 0
    while this.backbone.ledger.flops < trial.flops:
        this.method.step(step)
        step += 1
    return score() - before


def strided(config: Sampling, stride: float) -> Sampling:
    """The configuration with the learning rates of its optimizers times ``stride``."""
    optimizers = {
        f.name: value
        for f in dataclasses.fields(config)
        if isinstance(value := getattr(config, f.name), AdamW)
    }
    longer: dict[str, Any] = {
        name: dataclasses.replace(adamw, lr=stride * adamw.lr) for name, adamw in optimizers.items()
    }
    return dataclasses.replace(config, **longer)
