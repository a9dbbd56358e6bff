"""How cost grows: time linear in sampling steps, batch and K; memory flat in steps.

Of AlignProp on the embedded model, which contains every kind of pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import Ledger
from benchmarks.speed.clock import in_turns, peak
from benchmarks.speed.models import made
from benchmarks.speed.ours import Ours

STEPS, BATCHES, LAST = (5, 10, 20, 40), (2, 4, 8, 16), (1, 5, 10, 20)
ROUNDS = 5


def measure(quick: bool = False) -> dict[str, Any]:
    """By what grows: its values, median seconds and peak bytes, and the line through the times."""
    backbone = StableDiffusion(made("embedded"), Ledger())
    scale, rounds = (5, 2) if quick else (1, ROUNDS)

    def full(batch: int, steps: int, last: int | None = None) -> Callable[[], None]:
        steps = max(steps // scale, 1)
        ours = Ours(backbone, batch=batch, steps=steps, guidance=2.5)
        return ours.alignprop(min(last or steps, steps), "latents")

    axes = {
        "sampling steps": {n: full(4, n) for n in STEPS},
        "batch": {n: full(n, 10) for n in BATCHES},
        "K": {n: full(4, 20, n) for n in LAST},
    }
    return {"growth": {name: _points(runs, rounds) for name, runs in axes.items()}}


def _points(runs: dict[int, Callable[[], None]], rounds: int) -> dict[str, Any]:
    seconds = in_turns({str(n): run for n, run in runs.items()}, rounds)
    values = list(runs)
    medians = [float(np.median(seconds[str(n)])) for n in values]
    slope, constant = np.polyfit(values, medians, 1)
    line = constant + slope * np.array(values)
    return {
        "values": values,
        "seconds": medians,
        "peak_bytes": [peak(run) for run in runs.values()],
        "seconds_each": float(slope),
        "seconds_constant": float(constant),
        "largest_deviation": float(np.max(np.abs(line - medians) / medians)),
    }
