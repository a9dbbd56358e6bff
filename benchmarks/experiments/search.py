"""The recorded hyperparameter search.

Every method gets the same number of trials at the same compute (``search.toml``). The best reward
on the validation prompts wins, among the trials that keep the share ``floor`` of what the base
model has of the held-out rewards; where none does, the trial that keeps most.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.api import UserError
from benchmarks.cli import Launching
from benchmarks.config import FOLDER, build, read_toml
from benchmarks.experiments.cells import announce, resolve
from benchmarks.experiments.launch import Around, run_here_or_launched
from benchmarks.harness.spec import Spec
from benchmarks.records.cell import Cell

FILE = FOLDER / "experiments" / "search.toml"


@dataclass(frozen=True, kw_only=True)
class Search:
    """The file of a search: what its trials share, and per method a table for each trial."""

    floor: float
    """The share of the base model's held-out rewards that a trial must keep."""
    budget: str
    """KIND=AMOUNT per trial."""
    seed: int
    """Of every trial."""
    task: str
    """Prompts and splits; judged are the unseen ones."""
    reward: str
    """What is optimised."""
    backbone: str
    """Whose weights, and whose preset the trials go over."""
    trials: Mapping[str, tuple[Mapping[str, Any], ...]]
    """Per method, values over its preset; for every method as many."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration of one method, and how it is judged."""

    method: str
    values: Mapping[str, Any]
    reward: float
    """On validation prompts at the end of the budget."""
    kept: float
    """The share left of the base model's held-out rewards, of the one that lost most."""


def load(path: Path) -> Search:
    """Read a search. Raises UserError for wrong keys and unequal numbers of trials."""
    search = build(Search, read_toml(path), str(path))
    if len({len(trials) for trials in search.trials.values()}) != 1:
        raise UserError(f"{path}: every method must have the same number of trials")
    return search


def cells(search: Search, path: Path, named: Sequence[Path] = ()) -> list[tuple[Spec, int]]:
    """The cell of each trial, and the trial's number for its method."""
    keys = ("backbone", "reward", "task", "budget", "seeds")
    found = []
    for method, trials in search.trials.items():
        for i, values in enumerate(trials):
            (spec,) = resolve(
                {method: [(values, f"{path}, {method}, trial {i + 1}")]},
                backbone=search.backbone,
                reward=search.reward,
                task=search.task,
                budget=search.budget,
                seeds=[search.seed],
                given=dict.fromkeys(keys, str(path)),
                named=map(str, named),
            )
            found.append((spec, i))
    return found


def run(
    path: Path, out: Path, launching: Launching, plugins: Sequence[Path] = ()
) -> tuple[list[tuple[Trial, bool]], dict[str, str]]:
    """Run all trials that are not finished: each trial with whether it wins, and what failed.

    Nobody is judged before all are done.
    """
    search = load(path)
    found = cells(search, path, plugins)
    specs = [spec for spec, _ in found]
    announce(specs, out)
    around = Around(out=out, plugins=tuple(plugins))
    failed = run_here_or_launched(launching.share(specs), launching, around)
    paths = [Cell(out, spec.description()).path for spec in specs]
    if failed or not all((path / "done").exists() for path in paths):
        return [], failed
    trials = [
        judged(cell, spec, search.trials[spec.method][i])
        for cell, (spec, i) in zip(paths, found, strict=True)
    ]
    winners = [choose([t for t in trials if t.method == m], search.floor) for m in search.trials]
    return [(trial, trial in winners) for trial in trials], failed


def judged(cell: Path, spec: Spec, values: Mapping[str, Any]) -> Trial:
    """What a finished trial's records say."""
    lines = [json.loads(line) for line in (cell / "evals.jsonl").read_text().splitlines()]
    rewards = {e["fraction"]: e["rewards"] for e in lines if e["split"] == "unseen"}
    first, last = rewards[0.0], rewards[1.0]
    return Trial(
        method=spec.method,
        values=values,
        reward=float(last[spec.reward]),
        kept=min(last[name] / first[name] for name in spec.task.held_out),
    )


def choose(trials: Sequence[Trial], floor: float) -> Trial:
    """The trial that wins."""
    kept = [trial for trial in trials if trial.kept >= floor]
    if not kept:
        return max(trials, key=lambda trial: trial.kept)
    return max(kept, key=lambda trial: trial.reward)
