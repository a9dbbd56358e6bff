"""From a choice of methods to finished cells."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.api import Task, UserError
from benchmarks.backbone import default_precision
from benchmarks.compute.budget import Budget
from benchmarks.config import (
    KeepChoice,
    Precision,
    load_preset,
    load_task,
    method_defaults,
    method_sources,
)
from benchmarks.distributed import leave, processes
from benchmarks.harness.guard import NotFinite
from benchmarks.harness.loop import Harness, Spec
from benchmarks.harness.progress import bar
from benchmarks.records import tracking
from benchmarks.records.cell import Cell, write_json
from benchmarks.records.state import planned

#: What ``torch.compile`` calls on a CPU; for a GPU it needs one of them too.
COMPILERS = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]


def has_compiler() -> bool:
    """Whether ``torch.compile`` can work here."""
    return any(map(shutil.which, COMPILERS))


def specs(
    configs: Mapping[str, Any],
    *,
    backbone: str = "emoji",
    reward: str = "jpeg",
    task: str | Task | None = None,
    budget: str | None = None,
    seeds: Sequence[int] = (0,),
    precision: Precision | None = None,
    keep: KeepChoice = "auto",
    compile: bool = False,
    sources: Mapping[str, Mapping[str, str]] | None = None,
    held_out: Sequence[str] | None = None,
    rank: int = 4,
) -> list[Spec]:
    """One cell per method (name and Config) and seed.

    ``task`` and ``budget`` are the preset's if there is none, ``precision`` the device's.
    ``compile`` puts the denoiser through ``torch.compile``. ``sources`` says per method where each
    value comes from, for the record. ``held_out`` are the rewards that are only reported, by
    default the task's. ``rank`` is that of the LoRA matrices; 0: full fine-tuning.

    Raises UserError for what cannot work, before anything is computed.
    """
    if compile and not has_compiler():
        raise UserError(
            f"--compile: torch.compile needs a compiler, {' or '.join(COMPILERS)}, and there is "
            "none; install one, or leave --compile out"
        )
    preset = load_preset(backbone)
    amount, wanted = Budget.parse(budget or preset["budget"]), task or preset["task"]
    prompts = wanted if isinstance(wanted, Task) else load_task(wanted)
    if held_out is not None:
        prompts = dataclasses.replace(prompts, held_out=tuple(held_out))
    cells = [
        Spec(
            method=name,
            config=config,
            task=prompts,
            reward=reward,
            backbone=backbone,
            seed=seed,
            budget=amount,
            evaluation=preset["evaluation"],
            rank=rank,
            precision=precision or default_precision(),
            keep=keep,
            compile=compile,
            sources=(sources or {}).get(name, {}),
        )
        for seed in seeds
        for name, config in configs.items()
    ]
    for spec in cells:
        spec.description()
    return cells


def run_cells(
    cells: Sequence[Spec], out: Path, track: tracking.Name | None = None
) -> tuple[list[Path], dict[str, str]]:
    """Run what is not finished yet: the finished cells' directories, and why others failed.

    What failed before comes last. If one of several processes fails alone, the others wait for it
    in vain, so the run ends; the same command goes on with the other cells. Raises UserError if
    all cells refuse for the same reason.
    """
    harness = Harness(out, track=track)
    done, failed = list[Path](), dict[str, Exception]()
    rewards = {spec.reward for spec in cells}
    for spec in sorted(cells, key=lambda spec: Cell(out, spec.description()).failed):
        name = f"{spec.method}, seed {spec.seed}"
        if len(rewards) > 1:  # of a suite
            name = Cell(out, spec.description()).path.name
        with bar(name) as progress:
            try:
                done.append(harness.run(spec, progress))
            except Exception as error:  # noqa: BLE001 - in whatever way one fails, others go on
                if processes() > 1 and not isinstance(error, UserError | NotFinite):
                    leave(f"{name} failed: {error}")
                failed[name] = error
    if len(failed) == len(cells) and len({repr(error) for error in failed.values()}) == 1:
        reason = next(iter(failed.values()))
        if isinstance(reason, UserError):
            raise reason
    return done, {name: _line(error) for name, error in failed.items()}


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def plan(cells: Sequence[Spec], out: Path) -> None:
    """Add ``cells`` to ``plan.json``, so that ``status`` knows what is missing.

    Raises UserError if ``out`` cannot be written.
    """
    names = [Cell(out, spec.description()).path.name for spec in cells]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "plan.json", sorted({*planned(out), *names}))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from error


def run(
    methods: Sequence[str] = ("alignprop", "ddpo"),
    *,
    out: str | Path = "runs",
    config: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Compare ``methods`` and return their evaluations.

    ``config`` has values per method, nested like the TOML file; ``options`` are those of ``specs``.
    One row per cell, split and share of the budget: method, seed, split, fraction, step, the
    ledger's counters, diversity and a column per reported reward. Raises UserError for bad input
    and RuntimeError if a cell fails.
    """
    if isinstance(methods, str):
        raise UserError(f"methods must be a list: methods=[{methods!r}]")
    unknown = set(config or {}) - set(methods)
    if unknown:
        raise UserError(f"config has values for {', '.join(unknown)}, not among the methods")
    preset = load_preset(options.get("backbone", "emoji"))
    configs, sources = {}, {}
    for name in methods:
        layer = ((config or {}).get(name, {}), f"config[{name!r}]")
        configs[name] = method_defaults(name, preset, layer)
        sources[name] = {k: "benchmarks.run" for k in options} | {
            f"config.{k}": v for k, v in method_sources(name, preset, layer).items()
        }
    cells = specs(configs, **options, sources=sources)
    plan(cells, Path(out))
    done, failed = run_cells(cells, Path(out))
    if failed:
        raise RuntimeError("; ".join(f"{name}: {reason}" for name, reason in failed.items()))
    rows = []
    for cell in done:
        head = json.loads((cell / "cell.json").read_text())
        for line in (cell / "evals.jsonl").read_text().splitlines():
            record = json.loads(line)
            record.pop("per_image")
            rows.append({k: head[k] for k in ("method", "seed")} | record | record.pop("rewards"))
    return pd.DataFrame(rows)
