"""``plan``: what methods will cost, before anything runs; needs no weights, GPU or network.

How it counts:

- Prices of passes in FLOPs, on the meta device, as the ledger measures them.
- The real method with its real configuration runs ``STEPS`` optimizer steps against modules that
  compute nothing; the ledger counts their passes. Same seed, same draws, same counts as the run.
- Memory: the heaviest of these steps runs once more on the meta device, where the denoiser and the
  decoder hold as many bytes as the real ones do for the same batch; every storage alive is counted
  (parameters, gradients and optimizer state too). Their bytes are measured with one and two samples
  and extended linearly. 16-bit weights and activations for SD v1.5, SD 2.1 and SDXL, 32-bit
  otherwise; attention by a fused kernel that keeps no probabilities. Not counted: the reward's
  own memory, the allocator's fragments, 32-bit normalisation under autocast.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tyro

from benchmarks.backbone.checkpointing import KEEPS
from benchmarks.cli import cli
from benchmarks.compute.budget import Budget
from benchmarks.compute.ledger import KINDS, passes
from benchmarks.config import load_preset, method_defaults
from benchmarks.forecast.dry_run import STEPS, counted
from benchmarks.forecast.ladder import ladder
from benchmarks.forecast.meta_model import MetaModel
from benchmarks.forecast.peak_memory import heaviest, peak
from benchmarks.forecast.shapes import SHAPES

GIB = 2**30
#: Peak 16-bit FLOP/s with 32-bit sums and no sparsity, from the makers' data sheets.
GPUS = {"A100 80 GB": 312e12, "H100 SXM": 989e12, "RTX 4090": 165e12, "RTX 3090": 71e12}
UTILISATION = 0.4
#: arXiv 2310.03739, page 5, as quoted by others (not read in the paper itself).
LADDER = "about 1 TB for full backpropagation, about 500 GB with LoRA, 15 GB with checkpointing"


def plan(name: str, config: Any, model: MetaModel, budget: Budget) -> dict[str, Any]:
    """All that can be said of one method before it runs; FLOPs and counts per optimizer step."""
    prices = model.prices
    result: dict[str, Any] = {"trainable_parameters": model.trainable, "keep": {}}
    for keep in KEEPS:
        rows = counted(name, config, model, keep)
        mean = {kind: sum(row[kind] for row in rows) / len(rows) for kind in KINDS}
        flops = {
            kind.name: mean[kind] * prices[kind] for kind in KINDS if mean[kind] * prices[kind]
        }
        nfe, queries = passes(mean, "denoiser", "forward"), passes(mean, "reward", "forward")
        result |= {
            "nfe_per_step": nfe,
            "reward_queries_per_step": queries,
            "reward_gradients_per_step": passes(mean, "reward", "backward"),
            "images_per_step": passes(mean, "decoder", "forward"),
        }
        found: dict[str, Any] = {
            "flops_per_step": sum(flops.values()),
            "flops_by_part": flops,
            "peak_bytes": model.frozen_bytes + peak(name, config, model, keep, heaviest(rows)),
        }
        per_step = {"flops": found["flops_per_step"], "queries": queries, "nfe": nfe, "steps": 1.0}
        if budget.kind in per_step:  # seconds depend on the device
            steps = int(budget.amount / per_step[budget.kind])
            work = steps * found["flops_per_step"]
            found |= {
                "steps_in_budget": steps,
                "reward_queries_in_budget": steps * queries,
                "hours": {gpu: work / (speed * UTILISATION) / 3600 for gpu, speed in GPUS.items()},
            }
        result["keep"][keep] = found
    return result


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclass(frozen=True, kw_only=True)
class Options:
    """What to plan."""

    methods: tuple[str, ...] = ("alignprop", "ddpo")
    """Names of methods (see --list methods)."""
    backbone: str = "sd15"
    """sd15, sd21, sdxl, emoji or a local diffusers folder."""
    budget: str | None = None
    """KIND=AMOUNT per cell (flops, queries, nfe, steps). Default: the preset's."""
    json: bool = False
    """Print JSON."""


def main(arguments: list[str]) -> int:
    """``plan``: print what each method will cost."""
    options = cli(Options, args=arguments, description=__doc__, prog="run_benchmark.py plan")
    known = options.backbone in SHAPES
    preset = load_preset("sd15" if known else options.backbone)
    budget = Budget.parse(options.budget or preset["budget"])
    configs = {name: method_defaults(name, preset) for name in options.methods}
    model = MetaModel(options.backbone, "fp16" if known else "fp32")
    report: dict[str, Any] = {
        "backbone": options.backbone,
        "budget": dataclasses.asdict(budget),
        "utilisation": UTILISATION,
        "frozen_bytes": model.frozen_bytes,
        "methods": {name: plan(name, config, model, budget) for name, config in configs.items()},
    }
    if known:
        report["ladder"] = ladder(model)
    print(json.dumps(report, indent=1) if options.json else "\n".join(_lines(report)))
    return 0


def _lines(report: dict[str, Any]) -> Iterator[str]:
    budget = report["budget"]
    yield f"{report['backbone']}, frozen weights {report['frozen_bytes'] / GIB:.2f} GiB"
    for name, method in report["methods"].items():
        yield ""
        yield (
            f"{name}: {method['trainable_parameters']:,} trainable parameters; per optimizer step "
            f"{method['nfe_per_step']:,.0f} NFE, {method['reward_queries_per_step']:,.0f} reward "
            f"queries, {method['reward_gradients_per_step']:,.0f} reward gradients"
        )
        for keep, values in method["keep"].items():
            parts = {k: f"{v / 1e12:,.4g}" for k, v in values["flops_by_part"].items()}
            yield (
                f"  {keep:7}  peak {values['peak_bytes'] / GIB:8,.2f} GiB, "
                f"{values['flops_per_step'] / 1e12:,.4g} TFLOP per step: "
                + ", ".join(f"{k} {v}" for k, v in parts.items())
            )
            if "hours" in values:
                hours = ", ".join(f"{gpu} {h:,.3g} h" for gpu, h in values["hours"].items())
                yield (
                    f"           {budget['kind']}={budget['amount']:g} buys "
                    f"{values['steps_in_budget']:,} steps, "
                    f"{values['reward_queries_in_budget']:,.0f} reward queries; {hours}"
                )
    yield ""
    yield (
        f"Means of the first {STEPS} optimizer steps at seed 0, the reward's FLOPs not counted; "
        f"hours at {report['utilisation']:.0%} of peak 16-bit speed."
    )
    if rungs := report.get("ladder"):
        yield (
            "Denoiser activations of one guided prediction, 16 bits, one picture, attention "
            f"probabilities kept: {rungs['stored_per_sampling_step'] / GIB:.1f} GiB per stored "
            f"sampling step ({rungs['stored_all'] / GIB:,.0f} GiB for 50), "
            f"{rungs['recomputed_per_sampling_step'] / GIB:.1f} GiB recomputed per sampling step, "
            f"{rungs['recomputed_inside'] / GIB:.1f} GiB block by block; "
            f"{rungs['flops_guided_forward'] / 1e12:.2f} TFLOP per guided forward pass."
        )
        stored, step, inside = (
            (report["frozen_bytes"] + rungs[name]) / 1e9
            for name in ("stored_all", "recomputed_per_sampling_step", "recomputed_inside")
        )
        yield (
            f"With the frozen weights: {stored:,.0f} GB stored, {step:.1f} GB recomputed per "
            f"sampling step, {inside:.1f} GB block by block; decoder and reward not counted."
        )
        yield (
            f"The paper, for SD v1.5 (p. 5, as quoted by others): {LADDER}. What these include was "
            "not found; they are of the same order as those above, and larger."
        )
