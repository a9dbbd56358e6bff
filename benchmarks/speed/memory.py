"""SD v1.5's peak memory by the planner, and the planner beside a measurement where one fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import registry
from benchmarks.api import Batch, Keep
from benchmarks.backbone.checkpointing import KEEPS
from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import Ledger
from benchmarks.config import override
from benchmarks.forecast import peak_memory
from benchmarks.forecast.meta_model import MetaModel
from benchmarks.speed.clock import peak
from benchmarks.speed.models import PIXELS, sd15, write_configs
from benchmarks.speed.ours import Ours

#: Bytes to stay under; the paper's own figure is 15 GB.
TARGET = 7.5e9


def measure() -> dict[str, Any]:
    """Full backpropagation, batch 1: at 512 pixels and 50 steps planned; at ``PIXELS`` both."""
    model = MetaModel("sd15", "fp16")
    planned = {
        keep: model.frozen_bytes + _peak(model, keep, steps=50) for keep in KEEPS if keep != "all"
    }
    return {
        "target_bytes": TARGET,
        "frozen_bytes": model.frozen_bytes,
        "planned_bytes": planned,
        "check": check(),
    }


def check(steps: int = 4) -> dict[str, Any]:
    """Planned and measured peaks, weights not counted, in float32 at low resolution."""
    with TemporaryDirectory() as folder:
        write_configs(Path(folder))
        small = MetaModel(folder, "fp32")
        planned = {keep: _peak(small, keep, steps) for keep in KEEPS}
    ours = Ours(StableDiffusion(sd15(), Ledger()), batch=1, steps=steps, guidance=7.5)
    found = {}
    for keep in KEEPS:
        run: Callable[[], None] = ours.alignprop(steps, keep)
        run()  # the optimizer's state is there from the first step on
        found[keep] = {"planned_bytes": planned[keep], "measured_bytes": peak(run)}
    return {"pixels": PIXELS, "steps": steps, "keep": found}


def _peak(model: MetaModel, keep: Keep, steps: int) -> float:
    name = "alignprop-full"
    default: Batch = registry.methods.get(name).Config()
    small = replace(default.resampled(steps).resized(1), micro_batch=1)
    config = override(small, registry.methods.variants[name].values, name)
    return peak_memory.peak(name, config, model, keep, range(1))
