"""SD v1.5's peak memory by the planner, and the planner beside a measurement where one fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import registry
from benchmarks.backbone.checkpointing import PLANS
from benchmarks.backbone.lora_sd import LoraSD
from benchmarks.compute.ledger import Ledger
from benchmarks.config import override
from benchmarks.forecast import forecast
from benchmarks.forecast.meta_model import Model
from benchmarks.speed.clock import peak
from benchmarks.speed.models import PIXELS, sd15, write_configs
from benchmarks.speed.ours import Ours

#: Bytes to stay under; the paper's own figure is 15 GB.
TARGET = 7.5e9


def measure() -> dict[str, Any]:
    """Full backpropagation, batch 1: at 512 pixels and 50 steps planned; at ``PIXELS`` both."""
    model = Model("sd15", "fp16")
    planned = {
        plan: model.frozen_bytes + _peak(model, plan, steps=50) for plan in PLANS if plan != "store"
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
        small = Model(folder, "fp32")
        planned = {plan: _peak(small, plan, steps) for plan in PLANS}
    ours = Ours(LoraSD(sd15(), Ledger()), batch=1, steps=steps, guidance=7.5)
    found = {}
    for plan in PLANS:
        run: Callable[[], None] = ours.alignprop(steps, plan)
        run()  # the optimizer's state is there from the first step on
        found[plan] = {"planned_bytes": planned[plan], "measured_bytes": peak(run)}
    return {"pixels": PIXELS, "steps": steps, "plans": found}


def _peak(model: Model, plan: Any, steps: int) -> float:
    values = {"batch_size": 1, "micro_batch": 1, "sampling_steps": steps}
    name = "alignprop-full"
    config = override(registry.methods.get(name).Config(), values, name)
    config = override(config, registry.methods.variants[name].values, name)
    row = dict.fromkeys(("unet_backward", "unet_backward_first", "reward_forward"), 1.0)
    return forecast.peak(name, config, model, plan, [row])
