"""Every table and figure of a paper by one command.

A suite is a TOML file of what its experiments share and, in the folder of the same name, a file
per table or figure: which cells it needs, what is evaluated besides, what is drawn and what the
source claims (docs/how-to/suites.md). Cells that several of them need run once: all are below one
folder, each in the directory named by its hash. ``suite.json`` says which belong where, for the
report.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from benchmarks import registry
from benchmarks.api import Count, Finite, Index, Positive, Preset, UserError, Within
from benchmarks.cli import Launching
from benchmarks.compute.budget import Budget
from benchmarks.config import (
    FOLDER,
    Layer,
    TaskEvaluation,
    build,
    check_task,
    checked,
    load_preset,
    load_task,
    merged,
    method_defaults,
    read_toml,
)
from benchmarks.distributed import process, start
from benchmarks.experiments import checkpoints
from benchmarks.experiments.cells import announce, resolve
from benchmarks.experiments.launch import Around, run_here_or_launched
from benchmarks.experiments.requests import Chosen, Request
from benchmarks.forecast import forecast
from benchmarks.forecast.ladder import rungs
from benchmarks.forecast.meta_model import MetaModel
from benchmarks.forecast.peak_memory import FILL
from benchmarks.forecast.shapes import SHAPES
from benchmarks.harness.spec import Spec
from benchmarks.records.cell import Cell, write_json
from benchmarks.registry import hint

ROOT = FOLDER.parent
#: The GPU whose hours are said beforehand, and its bytes.
GPU, GPU_BYTES = "A100 80 GB", 80e9


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One curve of a table or figure: a method in one configuration."""

    method: str | None = None
    """Its name. Default: the arm's label."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Values over the preset's, nested like the method's Config."""
    rank: Index = 4
    """Of the LoRA matrices; 0: all weights are trained."""
    placebo: bool = False
    """Trained on the reward without meaning, so that the report knows what others have learnt."""
    budget_factor: Annotated[float, Within(least=1)] = 1.0
    """So many times the item's budget, for a method that is to be cheaper by that; a power of 2."""


@dataclass(frozen=True, kw_only=True)
class Further:
    """An evaluation of an arm's checkpoints, once per seed: ``sweep`` or ``parts``."""

    arm: str
    """Whose checkpoints."""
    rewards: tuple[Index, ...]
    """Positions in the item's `rewards`: one checkpoint for each."""
    sweep: Index = 0
    """So many even mixes of two checkpoints, or of one and the base model."""
    parts: Index = 0
    """Adapters only in the first, and only in the last, k of so many parts of the chain."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the source says, and how it is measured on our runs."""

    paper: str
    """The claim in words."""
    measure: str
    """How it is measured."""
    published: tuple[str, ...] = ()
    """Quantities of results/published.toml that go with it."""
    arms: tuple[str, ...] = ()
    """Labels of the arms that are measured."""
    split: str | None = None
    """`train` or `unseen`: the prompts of the evaluations that count."""
    of: str | None = None
    """A reward or measure to compare instead of the train reward."""
    times: Positive | None = None
    """A speed-up holds above this factor. Default: 1."""
    at: Finite | None = None
    """The soup's coefficient of the last checkpoint."""
    reward: Index | None = None
    """The position in `rewards` of the reward that is measured."""
    rung: str | None = None
    """The rung of the memory ladder."""
    why: str | None = None
    """What we think where the paper and we differ."""


#: What a claim with this measure has to say.
NEEDED = {
    "difference": ("arms", "split"),
    "gain": ("arms", "split"),
    "parts_of_mixture": ("arms", "split"),
    "speedup": ("arms", "split"),
    "soup": ("at",),
    "late": ("reward",),
    "early": ("reward",),
    "memory": ("rung", "published"),
}


@dataclass(frozen=True)
class Trial:
    """A method in one configuration, trained on one reward and its prompts."""

    method: str
    config: Any
    rank: int
    reward: str
    task: str
    placebo: bool
    budget: str


@dataclass(frozen=True, kw_only=True)
class Primary:
    """The one finding of a suite that is named beforehand, and not corrected for the others."""

    item: str
    """The table or figure whose claim it is."""
    claim: Count
    """Which of its claims, from 1."""
    reward: str
    """The reward that it is about."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One table or figure: the keys of its file, over those of the suite's."""

    title: str
    """The heading of its section."""
    folder: str = "embedded"
    """The directory of results below `--out`."""
    rewards: tuple[str, ...] = ()
    """What is optimised: one comparison for each."""
    arms: Mapping[str, Arm] = field(default_factory=dict)
    """The curves by label; a list of methods is short for arms without settings."""
    evaluations: tuple[Further, ...] = ()
    """What is evaluated besides the runs' own evaluations."""
    ladder: str | None = None
    """The backbone whose memory ladder is computed."""
    budget: str
    """KIND=AMOUNT per cell."""
    seeds: tuple[int, ...]
    """One cell per reward, arm and seed."""
    task: str
    """Prompts and splits."""
    tasks: Mapping[str, str] = field(default_factory=dict)
    """Tasks of single rewards."""
    held_out: tuple[str, ...] | None = None
    """Rewards that are only reported. Default: the task's."""
    evaluation: Mapping[str, Count] = field(default_factory=dict)
    """Over the task's `train_every`, `train_images`, `unseen_images`."""
    figures: tuple[str, ...] = ()
    """What is drawn."""
    tables: tuple[str, ...] = ()
    """What is tabulated."""
    claims: tuple[Claim, ...] = ()
    """What the source says."""
    primary: Primary | None = None
    """The suite's primary finding."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An item of a suite, ready to run."""

    name: str
    item: Item
    origins: Mapping[str, str]
    """Where each key of the item was set."""
    named: tuple[str, ...] = ()
    """The code files that the command line named."""

    def trials(self, preset: Preset) -> dict[tuple[str, str], Trial]:
        """By reward and label."""
        return {
            (reward, label): Trial(
                method=arm.method or label,
                config=method_defaults(arm.method or label, preset, self._layer(label)),
                rank=arm.rank,
                reward=reward,
                task=self.item.tasks.get(reward, self.item.task),
                placebo=arm.placebo,
                budget=str(Budget.parse(self.item.budget).times(arm.budget_factor)),
            )
            for reward in self.item.rewards
            for label, arm in self.item.arms.items()
        }

    def _layer(self, label: str) -> Layer:
        return self.item.arms[label].config, f"{self.origins['arms']}, {label}"

    def cells(self, backbone: str) -> dict[tuple[str, str, int], Spec]:
        """By reward, label and seed. Raises UserError for what cannot work."""
        found = {}
        keys = ("budget", "seeds", "task", "held_out", "evaluation")
        given = {key: self.origins[key] for key in keys if key in self.origins}
        for reward in self.item.rewards:
            name = self.item.tasks.get(reward, self.item.task)
            changes: Any = self.item.evaluation
            task = dataclasses.replace(load_task(name), **changes)
            check_task(task, self.origins.get("evaluation", name))
            for label, arm in self.item.arms.items():
                for spec in resolve(
                    {arm.method or label: [self._layer(label)]},
                    backbone=backbone,
                    reward=reward,
                    task=task,
                    held_out=self.item.held_out,
                    budget=self.item.budget,
                    seeds=self.item.seeds,
                    rank=arm.rank,
                    placebo=arm.placebo,
                    budget_factor=arm.budget_factor,
                    named=self.named,
                    given=given
                    | {"reward": self.origins["rewards"], "rank": self.origins["arms"]}
                    | {"backbone": "command line"},
                ):
                    found[reward, label, spec.seed] = spec
        return found


def load(chosen: Chosen) -> list[Loaded]:
    """The tables and figures of a suite. Raises UserError for bad names and files."""
    path = file_of(chosen.suite)
    values = read_toml(path)
    names = values.pop("items", None)
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        folder = path.with_suffix("")
        raise UserError(f"{path}: items must be a list of files in {folder}, not {names!r}")
    shared = _layers(values, str(path), chosen)
    items = []
    for name in names:
        file = path.with_suffix("") / f"{name}.toml"
        items.append(_loaded(file, [*shared, *_layers(read_toml(file), str(file), chosen)], chosen))
    for name in chosen.only:
        if name not in names:
            raise UserError(f"--only {name}: {hint(name, names)}")
    return items


def file_of(suite: str) -> Path:
    """The file of a suite. Raises UserError for an unknown name."""
    if suite.endswith(".toml"):
        return Path(suite)
    try:
        source = registry.suites.get(suite)
    except UserError as error:
        raise UserError(f"{error}; or give the path of a .toml file") from error
    return Path(source if isinstance(source, Path) else source())


def _layers(values: Mapping[str, Any], where: str, chosen: Chosen) -> list[Layer]:
    """What a file says, lowest first: its own keys, then the tables of --quick and this backbone.

    Every table is checked, also those of other backbones.
    """
    tables = {k for k in values if k == "quick" or k in registry.backbones.names()}
    own = {key: value for key, value in values.items() if key not in tables}
    checked(Item, _with_arms(own), where)
    below: list[Layer] = [(own, where)]
    for table in sorted(tables, key=lambda table: table != "quick"):
        if not isinstance(values[table], Mapping):
            raise UserError(f"{where}: {table} must be a table, not {values[table]!r}")
        inner = _layers(values[table], f"{where}, table {table}", chosen)
        if table == chosen.backbone or (table == "quick" and chosen.quick):
            below += inner
    return below


def _with_arms(values: Mapping[str, Any]) -> dict[str, Any]:
    """With a list of arms as a table of arms without settings."""
    arms = values.get("arms")
    if isinstance(arms, list) and all(isinstance(label, str) for label in arms):
        return {**values, "arms": {label: {} for label in arms}}
    return dict(values)


def _loaded(path: Path, layers: Sequence[Layer], chosen: Chosen) -> Loaded:
    values: dict[str, Any] = functools.reduce(merged, (table for table, _ in layers), {})
    item = build(Item, _with_arms(values), str(path))
    checked(TaskEvaluation, item.evaluation, f"{path}: evaluation")
    _check_names(item, path)
    origins = {key: where for table, where in layers for key in table}
    origins |= dict.fromkeys({"rewards", "arms"} - origins.keys(), str(path))
    named = tuple(map(str, chosen.plugin))
    return Loaded(name=path.stem, item=item, origins=origins, named=named)


def _check_names(item: Item, path: Path) -> None:
    """Raises UserError for figures, tables, measures and arms that there are not."""
    from analysis.claims import MEASURES  # here, because they draw, and need half a second
    from analysis.figures import FIGURES, TABLES

    wanted: list[tuple[str, str, Mapping[str, Any]]]
    wanted = [("figures", name, FIGURES) for name in item.figures]
    wanted += [("tables", name, TABLES) for name in item.tables]
    wanted += [("a claim's measure", claim.measure, MEASURES) for claim in item.claims]
    wanted += [("a claim's arms", name, item.arms) for c in item.claims for name in c.arms]
    wanted += [("an evaluation's arm", further.arm, item.arms) for further in item.evaluations]
    for what, name, known in wanted:
        if name not in known:
            raise UserError(f"{path}: {what}: unknown {name!r}; {hint(name, known)}")
    for claim in item.claims:
        missing = [k for k in NEEDED.get(claim.measure, ()) if getattr(claim, k) in (None, ())]
        if missing:
            raise UserError(f"{path}: the claim by {claim.measure} misses {', '.join(missing)}")
    for further in item.evaluations:
        places = [i for i in further.rewards if not 0 <= i < len(item.rewards)]
        if places or bool(further.sweep) == bool(further.parts):
            raise UserError(
                f"{path}: an evaluation needs an arm, positions in rewards, and sweep or parts"
            )


@dataclass(frozen=True)
class Evaluation:
    """Checkpoints to evaluate, and the directory for it: named by the cells, not by their weights,
    so that records are found where weights are no longer."""

    folder: Path
    cells: tuple[Path, ...]
    options: Request

    @property
    def ready(self) -> bool:
        """Whether the cells are done."""
        return all((cell / "done").exists() for cell in self.cells)


def evaluations(loaded: Loaded, cells: Mapping[Any, Spec], runs: Path) -> Iterator[Evaluation]:
    """One for each seed and entry of the item's ``evaluations``."""
    for entry in loaded.item.evaluations:
        kind = "sweep" if entry.sweep else "parts"
        number = entry.sweep or entry.parts
        for seed in loaded.item.seeds:
            specs = [cells[loaded.item.rewards[i], entry.arm, seed] for i in entry.rewards]
            paths = tuple(Cell(runs, spec.description()).path for spec in specs)
            text = json.dumps([kind, number, [path.name for path in paths]])
            name = f"evaluate-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
            options: Any = {"checkpoints": paths, "out": runs, kind: number}
            named = tuple(map(Path, loaded.named))
            yield Evaluation(runs / name, paths, Request(**options, plugin=named))


def counted(items: Sequence[Loaded], preset: Preset) -> dict[tuple[Trial, str], int]:
    """How many different cells there are of each trial and budget."""
    wanted: dict[tuple[Trial, str], set[int]] = {}
    for loaded in items:
        for trial in loaded.trials(preset).values():
            wanted.setdefault((trial, trial.budget), set()).update(loaded.item.seeds)
    return {key: len(seeds) for key, seeds in wanted.items()}


def cost(items: Sequence[Loaded], backbone: str) -> Iterator[str]:
    """What the suite will take, said before it starts; in GPU hours if the model's shape is known.

    Evaluations and the reward's own FLOPs are not counted.
    """
    wanted = counted(items, load_preset(backbone))
    yield f"{len(items)} tables and figures, {sum(wanted.values())} different cells"
    if backbone not in SHAPES:
        yield from sorted({f"each of {budget}" for _, budget in wanted})
        return
    models = dict[int, MetaModel]()
    hours = 0.0
    for (method, config, size, budget), number in without_reward(wanted).items():
        if size not in models:
            models[size] = MetaModel(backbone, "bf16", size)
        choices = forecast.plan(method, config, models[size], Budget.parse(budget))["keep"]
        fits = (k for k in choices if choices[k]["peak_bytes"] <= FILL * GPU_BYTES)
        keep = next(fits, list(choices)[-1])
        values = choices[keep]
        each = values["hours"][GPU]
        hours += each * number
        yield (
            f"  {number:3} x {method}{'' if size else ', all weights'}, {budget}: "
            f"{values['steps_in_budget']:,} steps, {each:,.3g} h, "
            f"{values['peak_bytes'] / forecast.GIB:,.3g} GiB ({keep})"
        )
    yield (
        f"{hours:,.4g} hours on one {GPU} at {forecast.UTILISATION:.0%} of its speed; evaluations "
        "and the rewards' own passes come on top"
    )


def without_reward(
    wanted: Mapping[tuple[Trial, str], int],
) -> Counter[tuple[str, Any, int, str]]:
    """Cells by method, Config, rank and budget: what a cost depends on."""
    counts = Counter[tuple[str, Any, int, str]]()
    for (trial, budget), number in wanted.items():
        counts[trial.method, trial.config, trial.rank, budget] += number
    return counts


def selected(items: Sequence[Loaded], chosen: Chosen) -> list[Loaded]:
    """The items of ``--only``."""
    return [one for one in items if not chosen.only or one.name in chosen.only]


def run(chosen: Chosen, out: Path, launching: Launching) -> dict[str, str]:
    """Run what is not finished: why something failed."""
    items = load(chosen)
    wanted = selected(items, chosen)
    start()
    if process() == 0:
        for line in cost(wanted, chosen.backbone):
            print(line, flush=True)
    root = out / items[0].item.folder
    runs = root / "runs"
    cells = {one.name: one.cells(chosen.backbone) for one in items}
    more = {one.name: list(evaluations(one, cells[one.name], runs)) for one in items}
    distinct = {
        Cell(runs, spec.description()).path.name: spec
        for one in wanted
        for spec in cells[one.name].values()
    }
    ordered = sorted(distinct.values(), key=lambda spec: spec.seed)  # every seed has all cells
    mine = launching.share(ordered)
    announce(ordered, runs)
    if process() == 0:
        root.mkdir(parents=True, exist_ok=True)
        write_json(root / "suite.json", _index(chosen, items, cells, more, runs))
    failed = dict[str, str]()
    if mine:
        failed = run_here_or_launched(mine, launching, Around(out=runs, plugins=chosen.plugin))
    extra = {e.folder.name: e for one in wanted for e in more[one.name]}
    for name, evaluation in launching.share(list(extra.items()), may_be_empty=True):
        if not (evaluation.folder / "evaluation.json").is_file() and evaluation.ready:
            print(f"{name}: starting", flush=True)
            checkpoints.run(evaluation.options, evaluation.folder)
    ladders = [one.item.ladder for one in wanted if one.item.ladder]
    if ladders and not (root / "memory.json").is_file() and process() == 0:
        write_json(root / "memory.json", {n: rungs(n) for n in dict.fromkeys(ladders)})
    return failed


def _index(
    chosen: Chosen,
    items: Sequence[Loaded],
    cells: Mapping[str, Mapping[tuple[str, str, int], Spec]],
    more: Mapping[str, Sequence[Evaluation]],
    runs: Path,
) -> dict[str, Any]:
    """What belongs to each table and figure, for the report: cells with labels, evaluations."""
    path = file_of(chosen.suite).resolve()
    inside = path.is_relative_to(ROOT)
    command = ["python", "run_benchmark.py", "--suite", chosen.suite]
    if chosen.backbone != "emoji":
        command += ["--backbone", chosen.backbone]
    if chosen.quick:
        command.append("--quick")
    return {
        "suite": path.relative_to(ROOT).as_posix() if inside else str(path),
        "command": shlex.join(command),
        "backbone": chosen.backbone,
        "items": {
            one.name: {
                "rewards": list(one.item.rewards),
                "ladder": one.item.ladder,
                "cells": {
                    Cell(runs, spec.description()).path.name: label
                    for (_, label, _), spec in cells[one.name].items()
                },
                "evaluations": [evaluation.folder.name for evaluation in more[one.name]],
            }
            for one in items
        },
    }
