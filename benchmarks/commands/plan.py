"""Say what methods, a suite, or cells will cost before anything runs.

Needs no weights, GPU or network: the real methods run against modules that compute nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.cli import cli, load_plugins
from benchmarks.config import Precision

#: The backbone of the paper, whose ladder of memory is printed beside its plan.
PAPERS = "sd15"


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclass(frozen=True, kw_only=True)
class Options:
    """What to plan: methods, or --suite, or the files of cells."""

    cells: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Files cell.json. Default: the methods, or the suite."""
    methods: tuple[str, ...] = ("alignprop", "ddpo")
    """Names of methods (see list methods)."""
    suite: str | None = None
    """All cells of a suite instead (see list suites)."""
    quick: bool = False
    """With --suite: its small budgets."""
    only: tuple[str, ...] = ()
    """With --suite: names of tables and figures. Default: all of them."""
    backbone: str = "sd15"
    """sd15, sd21, sdxl, sd35-medium, flux-dev, emoji or a local diffusers folder; of files it is
    their own."""
    budget: str | None = None
    """KIND=AMOUNT per cell (flops, queries, nfe, steps). Default: the preset's, or the cells'."""
    json: bool = False
    """Print JSON."""
    plugin: tuple[Path, ...] = ()
    """Python files that register what is planned. They are run."""


@dataclass(frozen=True)
class Planned:
    """Cells that cost the same."""

    label: str
    method: str
    config: Any
    backbone: str
    rank: int
    budget: str | None
    number: int = 1


def main(arguments: list[str]) -> int:
    """Print what each method, or each kind of cell, will cost."""
    options: Options = cli(
        Options, args=arguments, prog="run_benchmark.py plan", description=__doc__
    )
    load_plugins(options.plugin)
    if options.cells:
        planned = of_files(options)
    else:
        planned = of_suite(options) if options.suite else of_methods(options)
    models = dict.fromkeys((one.backbone, one.rank) for one in planned)
    reports = [
        report([one for one in planned if (one.backbone, one.rank) == model]) for model in models
    ]
    if options.json:
        print(json.dumps(reports[0] if len(reports) == 1 else reports, indent=1))
    else:
        print("\n\n".join("\n".join(_lines(found)) for found in reports))
    return 0


def of_methods(options: Options) -> list[Planned]:
    """One cell of each method, with the backbone's settings."""
    from benchmarks import registry
    from benchmarks.config import load_preset, method_defaults
    from benchmarks.forecast.shapes import SHAPES

    named = options.backbone in registry.backbones.names()
    shape_only = options.backbone in SHAPES and not named
    preset = load_preset("sd15" if shape_only else options.backbone)
    budget = options.budget or preset.budget
    return [
        Planned(name, name, method_defaults(name, preset), options.backbone, 4, budget)
        for name in options.methods
    ]


def of_suite(options: Options) -> list[Planned]:
    """Every kind of cell of a suite; what differs in reward and seed alone costs the same."""
    from benchmarks.config import load_preset
    from benchmarks.experiments import suite
    from benchmarks.experiments.requests import Chosen

    chosen = Chosen(
        suite=options.suite or "",
        backbone=options.backbone,
        quick=options.quick,
        only=options.only,
        plugin=options.plugin,
    )
    items = suite.selected(suite.load(chosen), chosen)
    counts = suite.without_reward(suite.counted(items, load_preset(options.backbone)))
    return [
        Planned(
            f"{number} x {method}, {options.budget or budget}",
            *(method, config, options.backbone, rank, options.budget or budget, number),
        )
        for (method, config, rank, budget), number in counts.items()
    ]


def of_files(options: Options) -> list[Planned]:
    """The cells of these files."""
    from benchmarks.harness.spec import Spec

    planned = []
    for path in options.cells:
        spec = Spec.read(path)
        budget = options.budget or f"{spec.budget.kind}={spec.budget.amount!r}"
        name = path.parent.name if path.name == "cell.json" else str(path)
        planned.append(Planned(name, spec.method, spec.config, spec.backbone, spec.rank, budget))
    return planned


def report(planned: Sequence[Planned]) -> dict[str, Any]:
    """What cells of one model cost."""
    from benchmarks.compute.budget import Budget
    from benchmarks.forecast import forecast
    from benchmarks.forecast.ladder import ladder
    from benchmarks.forecast.meta_model import MetaModel
    from benchmarks.forecast.shapes import SHAPES

    backbone = planned[0].backbone
    precision: Precision = "bf16" if backbone in SHAPES else "fp32"
    model = MetaModel(backbone, precision, planned[0].rank)
    methods = {}
    for one in planned:
        budget = Budget.parse(one.budget or "")
        found = forecast.plan(one.method, one.config, model, budget)
        methods[one.label] = found | {"budget": dataclasses.asdict(budget), "cells": one.number}
    more = {"ladder": ladder(model)} if backbone == PAPERS else {}
    return {
        "backbone": backbone,
        "utilisation": forecast.UTILISATION,
        "frozen_bytes": model.frozen_bytes,
        "methods": methods,
        **more,
    }


def _lines(report: dict[str, Any]) -> Iterator[str]:
    from benchmarks.forecast.dry_run import STEPS
    from benchmarks.forecast.forecast import GIB, LADDER

    yield f"{report['backbone']}, frozen weights {report['frozen_bytes'] / GIB:.2f} GiB"
    for name, method in report["methods"].items():
        budget = method["budget"]
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
