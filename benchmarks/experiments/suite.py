"""``--suite NAME``: every table and figure of a paper by one command.

A suite is a TOML file of what its experiments share and, in the folder of the same name, a file
per table or figure: which cells it needs, what is evaluated besides, what is drawn and what the
source claims. Cells that several of them need run once: all are below one folder, each in the
directory named by its hash. ``suite.json`` says which belong where, for the report.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import registry
from benchmarks.api import UserError
from benchmarks.cli import cli
from benchmarks.compute.budget import Budget
from benchmarks.config import (
    FOLDER,
    load_preset,
    load_task,
    merged,
    method_defaults,
    method_sources,
    override,
    read_toml,
)
from benchmarks.distributed import rank, start
from benchmarks.experiments import checkpoints
from benchmarks.experiments.cells import plan, run_cells, specs
from benchmarks.experiments.launch import parse_shard
from benchmarks.forecast import forecast
from benchmarks.forecast.meta_model import Model
from benchmarks.forecast.shapes import SHAPES
from benchmarks.harness.loop import Spec
from benchmarks.records.cell import Cell, write_json

SUITES = FOLDER / "experiments" / "suites"
ROOT = FOLDER.parent
#: The GPU whose hours are said beforehand, and its bytes.
GPU, GPU_BYTES = "A100 80 GB", 80e9


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to reproduce."""

    suite: str
    """Name of a suite, or the TOML file of your own."""
    backbone: str = "emoji"
    """emoji (embedded), sd15, a diffusers folder or a hub id."""
    quick: bool = False
    """The same tables and figures from one seed and small budgets, with wide intervals."""
    only: tuple[str, ...] = ()
    """Names of tables and figures. Default: all of them."""
    shard: str = "1/1"
    """I/N: only every N-th cell, from the I-th (counted from 1), and no report."""
    out: Path | None = None
    """Where results go; what is finished there is not run again. Default: results, or
    runs/SUITE-quick with --quick."""


@dataclass(frozen=True)
class Trial:
    """A method in one configuration, trained on one reward and its prompts."""

    method: str
    config: Any
    rank: int
    reward: str
    task: str


@dataclass(frozen=True, kw_only=True)
class Item:
    """One table or figure, with what it shares with the others. ``arms`` are its curves: a label
    and, if that is not the method's name, ``method``, ``config`` and ``rank``."""

    name: str
    path: Path
    title: str
    folder: str = "embedded"
    rewards: Sequence[str] = ()
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    evaluations: Sequence[Mapping[str, Any]] = ()
    ladder: str | None = None
    budget: str
    seeds: Sequence[int]
    task: str
    tasks: Mapping[str, str] = field(default_factory=dict)
    held_out: Sequence[str] | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    figures: Sequence[str] = ()
    tables: Sequence[str] = ()
    claims: Sequence[Mapping[str, Any]] = ()
    primary: Mapping[str, Any] = field(default_factory=dict)
    guard: Sequence[str] = ()

    def trials(self, preset: Mapping[str, Any]) -> dict[tuple[str, str], Trial]:
        """By reward and label."""
        return {
            (reward, label): Trial(
                method=self._method(label),
                config=method_defaults(self._method(label), preset, self._layer(label)),
                rank=self.arms[label].get("rank", 4),
                reward=reward,
                task=self.tasks.get(reward, self.task),
            )
            for reward in self.rewards
            for label in self.arms
        }

    def _method(self, label: str) -> str:
        return str(self.arms[label].get("method", label))

    def _layer(self, label: str) -> tuple[Mapping[str, Any], str]:
        return self.arms[label].get("config", {}), f"{self.path.name}, {label}"

    def cells(self, backbone: str) -> dict[tuple[str, str, int], Spec]:
        """By reward, label and seed. Raises UserError for what cannot work."""
        preset, found = load_preset(backbone), {}
        for (reward, label), trial in self.trials(preset).items():
            changes = dict(self.evaluation)
            if self.held_out is not None:
                changes["held_out"] = self.held_out
            task = override(load_task(trial.task), changes, f"{self.path.name}: evaluation")
            sources = method_sources(trial.method, preset, self._layer(label))
            for spec in specs(
                {trial.method: trial.config},
                backbone=backbone,
                reward=reward,
                task=task,
                budget=self.budget,
                seeds=self.seeds,
                rank=trial.rank,
                sources={trial.method: {f"config.{k}": v for k, v in sources.items()}},
            ):
                found[reward, label, spec.seed] = spec
        return found


def load(options: Options) -> list[Item]:
    """The tables and figures of a suite. Raises UserError for bad names and files."""
    path = _file(options.suite)
    shared = _resolved(read_toml(path), options)
    names = shared.pop("items", [])
    if not names:
        raise UserError(f"{path}: items must name files in {path.with_suffix('')}")
    items = [_item(path.with_suffix("") / f"{name}.toml", shared, options) for name in names]
    for name in options.only:
        if name not in names:
            raise UserError(f"--only {name}: {_hint(name, names)}")
    return items


def _file(suite: str) -> Path:
    if suite.endswith(".toml"):
        return Path(suite)
    path = SUITES / f"{suite}.toml"
    if not path.is_file():
        known = sorted(file.stem for file in SUITES.glob("*.toml"))
        raise UserError(f"--suite {suite}: {_hint(suite, known)}")
    return path


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def _resolved(values: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """With the tables of this backbone and of --quick over the rest."""
    tables = {"quick", *registry.backbones.names()}
    found: dict[str, Any] = {k: v for k, v in values.items() if k not in tables}
    if options.quick:
        found = merged(found, values.get("quick", {}))
    own = values.get(options.backbone, {})
    return merged(found, _resolved(own, options)) if own else found


def _item(path: Path, shared: Mapping[str, Any], options: Options) -> Item:
    values = merged(shared, _resolved(read_toml(path), options))
    fields = {f.name for f in dataclasses.fields(Item)} - {"name", "path"}
    for key in values:
        if key not in fields:
            raise UserError(f"{path}: unknown key {key!r}; {_hint(key, sorted(fields))}")
    if isinstance(values.get("arms"), list):
        values["arms"] = {method: {} for method in values["arms"]}
    try:
        return Item(name=path.stem, path=path, **values)
    except TypeError as error:
        raise UserError(f"{path}: {str(error).partition('() ')[2]}") from error


@dataclass(frozen=True)
class Evaluation:
    """Checkpoints to evaluate, and the directory for it: named by the cells, not by their weights,
    so that records are found where weights are no longer."""

    folder: Path
    cells: tuple[Path, ...]
    options: checkpoints.Options

    @property
    def ready(self) -> bool:
        """Whether the cells are done."""
        return all((cell / "done").exists() for cell in self.cells)


def evaluations(item: Item, cells: Mapping[Any, Spec], runs: Path) -> Iterator[Evaluation]:
    """One for each seed: ``sweep`` or ``parts`` of an arm's checkpoints on these ``rewards``."""
    for entry in item.evaluations:
        values = dict(entry)
        try:
            arm, rewards = values.pop("arm"), [item.rewards[i] for i in values.pop("rewards")]
            ((kind, number),) = values.items()
            found = [
                [Cell(runs, cells[reward, arm, seed].description()).path for reward in rewards]
                for seed in item.seeds
            ]
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"{item.path}: an evaluation needs an arm, positions in rewards, and sweep or parts"
            ) from error
        for paths in found:
            text = json.dumps([kind, number, [path.name for path in paths]])
            name = f"evaluate-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
            options: Any = {"checkpoints": tuple(paths), "out": runs, kind: number}
            yield Evaluation(runs / name, tuple(paths), checkpoints.Options(**options))


def cost(items: Sequence[Item], backbone: str) -> Iterator[str]:
    """What the suite will take, said before it starts; in GPU hours if the model's shape is known.

    Evaluations and the reward's own FLOPs are not counted.
    """
    preset, models = load_preset(backbone), dict[int, Model]()
    wanted: dict[tuple[Trial, str], set[int]] = {}
    for item in items:
        for trial in item.trials(preset).values():
            wanted.setdefault((trial, item.budget), set()).update(item.seeds)
    count = sum(map(len, wanted.values()))
    yield f"{len(items)} tables and figures, {count} different cells"
    if backbone not in SHAPES:
        yield from sorted({f"each of {budget}" for _, budget in wanted})
        return
    hours, counts = 0.0, Counter[Any]()
    for (trial, budget), seeds in wanted.items():  # the reward does not matter here
        counts[trial.method, trial.config, trial.rank, budget] += len(seeds)
    for (method, config, size, budget), number in counts.items():
        if size not in models:
            models[size] = Model(backbone, "fp16", size)
        plans = forecast.plan(method, config, models[size], Budget.parse(budget))["plans"]
        fits = (m for m in plans if plans[m]["peak_bytes"] <= forecast.FILL * GPU_BYTES)
        memory = next(fits, list(plans)[-1])
        values = plans[memory]
        each = values["hours"][GPU]
        hours += each * number
        yield (
            f"  {number:3} x {method}{', all weights' * (size == 0)}, {budget}: "
            f"{values['steps_in_budget']:,} steps, {each:,.3g} h, "
            f"{values['peak_bytes'] / forecast.GIB:,.3g} GiB ({memory})"
        )
    yield (
        f"{hours:,.4g} hours on one {GPU} at {forecast.UTILISATION:.0%} of its speed; evaluations "
        "and the rewards' own passes come on top"
    )


def parse(arguments: list[str]) -> Options:
    """The command line."""
    return cli(Options, args=arguments, prog="run_benchmark.py", description=__doc__)


def run(options: Options) -> tuple[Path, dict[str, str]]:
    """Run what is not finished: the directory of the results, and why something failed."""
    items = load(options)
    out = options.out or Path(f"runs/{options.suite}-quick" if options.quick else "results")
    chosen = [item for item in items if not options.only or item.name in options.only]
    start()
    if rank() == 0:
        for line in cost(chosen, options.backbone):
            print(line, flush=True)
    root = out / items[0].folder
    runs, failed = root / "runs", dict[str, str]()
    cells = {item.name: item.cells(options.backbone) for item in items}
    more = {item.name: list(evaluations(item, cells[item.name], runs)) for item in items}
    distinct = {
        Cell(runs, spec.description()).path.name: spec
        for item in chosen
        for spec in cells[item.name].values()
    }
    ordered = sorted(distinct.values(), key=lambda spec: spec.seed)  # every seed has all cells
    shard = parse_shard(options.shard)
    if not range(len(ordered))[shard] and ordered:
        raise UserError(f"--shard {options.shard}: there are only {len(ordered)} cells")
    if rank() == 0:
        plan(ordered, runs)
        write_json(root / "suite.json", _index(options, items, cells, more, runs))
    if ordered[shard]:
        _, failed = run_cells(ordered[shard], runs)
    extra = {e.folder.name: e for item in chosen for e in more[item.name]}
    for name, evaluation in list(extra.items())[shard]:
        if not (evaluation.folder / "evaluation.json").is_file() and evaluation.ready:
            print(f"{name}: starting", flush=True)
            checkpoints.run(evaluation.options, evaluation.folder)
    ladders = [item.ladder for item in chosen if item.ladder]
    if ladders and not (root / "memory.json").is_file() and rank() == 0:
        write_json(root / "memory.json", {n: forecast.rungs(n) for n in dict.fromkeys(ladders)})
    return out, failed


def _index(
    options: Options,
    items: Sequence[Item],
    cells: Mapping[str, Mapping[tuple[str, str, int], Spec]],
    more: Mapping[str, Sequence[Evaluation]],
    runs: Path,
) -> dict[str, Any]:
    """What belongs to each table and figure, for the report: cells with labels, evaluations."""
    path = _file(options.suite).resolve()
    inside = path.is_relative_to(ROOT)
    command = ["python", "run_benchmark.py", "--suite", options.suite]
    command += ["--backbone", options.backbone] * (options.backbone != "emoji")
    return {
        "suite": path.relative_to(ROOT).as_posix() if inside else str(path),
        "command": shlex.join(command + ["--quick"] * options.quick),
        "backbone": options.backbone,
        "items": {
            item.name: {
                "rewards": list(item.rewards),
                "ladder": item.ladder,
                "cells": {
                    Cell(runs, spec.description()).path.name: label
                    for (_, label, _), spec in cells[item.name].items()
                },
                "evaluations": [evaluation.folder.name for evaluation in more[item.name]],
            }
            for item in items
        },
    }
