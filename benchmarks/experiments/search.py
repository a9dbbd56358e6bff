"""The search for hyperparameters, by the rules of ``RULES.md`` (12), for each reward anew.

Every method gets the same number of random trials from a space that a file declares, each trial
several seeds, each seed the same budget. A trial is worth the reward on validation prompts of its
last checkpoint that the guard keeps, averaged over its seeds, and the best trial wins. If a winner
lies at an edge of its space, every method gets ``extension`` more trials for that reward, once:
outward of that edge where a winner was, from its own space elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from benchmarks.api import Count, Index, Positive, UserError, Within
from benchmarks.cli import Launching
from benchmarks.config import FOLDER, build, read_toml
from benchmarks.experiments.cells import announce, resolve
from benchmarks.experiments.launch import Around, run_here_or_launched
from benchmarks.harness.spec import Spec
from benchmarks.records.cell import Cell
from benchmarks.records.state import DAMAGED, read_lines
from benchmarks.registry import hint
from benchmarks.streams import Streams

FILE = FOLDER / "experiments" / "search.toml"
#: A winner this close to an end of its range, as a share of the range's logarithm, is at its edge.
EDGE = 0.15


@dataclass(frozen=True, kw_only=True)
class Range:
    """The values of one setting: drawn evenly on the logarithm between two positive ends."""

    low: Positive
    high: Positive

    def at(self, share: float) -> float:
        """The value at this share of the range, to three digits."""
        return float(f"{self.low * (self.high / self.low) ** share:.3g}")

    def share(self, value: float) -> float:
        """Where in the range a value lies: 0 at the low end, 1 at the high one."""
        return math.log(value / self.low) / math.log(self.high / self.low)

    def beyond(self, share: float, factor: float) -> Range:
        """The range outward of the end that is nearer to ``share``."""
        if share < 0.5:
            return Range(low=self.low / factor, high=self.low)
        return Range(low=self.high, high=self.high * factor)


Space = Mapping[str, Range]  # by the setting's dotted name


@dataclass(frozen=True, kw_only=True)
class Search:
    """The file of a search."""

    backbone: str
    """Whose weights, and whose preset the trials go over."""
    task: str
    """Prompts and splits; judged are the unseen ones, under the task's guard."""
    rewards: tuple[str, ...]
    """Each is searched by itself."""
    budget: str
    """KIND=AMOUNT per trial and seed."""
    seeds: tuple[int, ...]
    """Of every trial, at least two; of no report."""
    trials: Count
    """Random trials per method and reward."""
    extension: Index
    """Further trials of every method if a winner is at an edge."""
    widen: Annotated[float, Within(above=1)]
    """How many times further these may go."""
    space: Mapping[str, Space]
    """Per method, the range of each setting."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration of one method for one reward."""

    method: str
    reward: str
    number: int
    """From 1; those beyond ``Search.trials`` are of the extension."""
    values: Mapping[str, float]
    """By dotted name, over the preset's."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the records of a trial say, on the validation prompts."""

    trial: Trial
    base: float
    """The base model's reward."""
    scores: tuple[float, ...]
    """Per seed, the reward of the last checkpoint that the guard keeps."""
    kept: float
    """The share of all evaluations that it keeps."""

    @property
    def score(self) -> float:
        """What the trial is worth."""
        return sum(self.scores) / len(self.scores)


def load(path: Path) -> Search:
    """Read a search. Raises UserError for what cannot be one."""
    search = build(Search, read_toml(path), str(path))
    if len(set(search.seeds)) < 2:
        raise UserError(f"{path}: seeds must be at least two: one may be luck")
    for method, space in search.space.items():
        for name, ends in space.items():
            if not ends.low < ends.high:
                raise UserError(
                    f"{path}: space.{method}.{name} goes from {ends.low:g} to {ends.high:g}; the "
                    "first must be below the second"
                )
    return search


def narrowed(search: Search, methods: Sequence[str], rewards: Sequence[str]) -> Search:
    """Only these methods, and these rewards instead of the file's; empty: all of its own.

    Raises UserError for a method without a space.
    """
    for name in methods:
        if name not in search.space:
            raise UserError(f"--methods {name}: {hint(name, list(search.space))}")
    space = {name: search.space[name] for name in methods or search.space}
    return replace(search, space=space, rewards=tuple(rewards) or search.rewards)


def drawn(search: Search, method: str, reward: str) -> list[Trial]:
    """The random trials of a method, the same at every call."""
    numbers = range(1, search.trials + 1)
    return [
        Trial(
            method=method,
            reward=reward,
            number=number,
            values=_draw(search.space[method], method, reward, number),
        )
        for number in numbers
    ]


def extended(search: Search, winners: Sequence[Judged]) -> list[Trial]:
    """The further trials for one reward; none if no method's winner is at an edge."""
    edges = {winner.trial.method: at_edge(search, winner.trial) for winner in winners}
    if not any(edges.values()):
        return []
    found = []
    for winner in winners:
        trial = winner.trial
        space = {
            name: ends.beyond(ends.share(trial.values[name]), search.widen)
            if name in edges[trial.method]
            else ends
            for name, ends in search.space[trial.method].items()
        }
        for number in range(search.trials + 1, search.trials + search.extension + 1):
            values = _draw(space, trial.method, trial.reward, number)
            found.append(replace(trial, number=number, values=values))
    return found


def at_edge(search: Search, trial: Trial) -> list[str]:
    """The settings in which a trial lies at an edge of its method's space."""
    space = search.space[trial.method]
    shares = {name: space[name].share(value) for name, value in trial.values.items()}
    return [name for name, share in shares.items() if not EDGE <= share <= 1 - EDGE]


def _draw(space: Space, method: str, reward: str, number: int) -> dict[str, float]:
    streams = Streams(0)
    found = {}
    for name, ends in sorted(space.items()):
        purpose = f"search {method} {reward} {name}"
        found[name] = ends.at(streams.integer(purpose, number, 0, 10**6) / 10**6)
    return found


def cells(search: Search, trials: Sequence[Trial], path: Path, named: Sequence[Path]) -> list[Spec]:
    """The cells of these trials, one per seed."""
    keys = ("backbone", "reward", "task", "budget", "seeds")
    return [
        spec
        for trial in trials
        for spec in resolve(
            {trial.method: [(_nested(trial.values), f"{path}, trial {trial.number}")]},
            backbone=search.backbone,
            reward=trial.reward,
            task=search.task,
            budget=search.budget,
            seeds=search.seeds,
            given=dict.fromkeys(keys, str(path)),
            named=map(str, named),
        )
    ]


def _nested(values: Mapping[str, float]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        *tables, last = name.split(".")
        table = found
        for part in tables:
            table = table.setdefault(part, {})
        table[last] = value
    return found


def run(
    search: Search, path: Path, out: Path, launching: Launching, plugins: Sequence[Path] = ()
) -> tuple[list[tuple[Judged, bool]], dict[str, str]]:
    """Run what is not finished: each trial with whether it wins, and what failed.

    Nobody is judged before all trials are done; a shard that is done before others says nothing.
    """
    first = [t for r in search.rewards for m in search.space for t in drawn(search, m, r)]
    judged, failed = _done(search, first, path, out, launching, plugins)
    if not judged:
        return [], failed
    more = [
        trial
        for reward in search.rewards
        for trial in extended(search, winners([j for j in judged if j.trial.reward == reward]))
    ]
    if more:
        further, failed = _done(search, more, path, out, launching, plugins)
        if not further:
            return [], failed
        judged += further
    best = [
        winner
        for reward in search.rewards
        for winner in winners([j for j in judged if j.trial.reward == reward])
    ]
    return [(one, one in best) for one in judged], failed


def winners(judged: Sequence[Judged]) -> list[Judged]:
    """The best trial of each method."""
    methods = dict.fromkeys(one.trial.method for one in judged)
    return [
        max((one for one in judged if one.trial.method == method), key=lambda one: one.score)
        for method in methods
    ]


def _done(
    search: Search,
    trials: Sequence[Trial],
    path: Path,
    out: Path,
    launching: Launching,
    plugins: Sequence[Path],
) -> tuple[list[Judged], dict[str, str]]:
    """Run these trials; what their records say, or nothing as long as one is not done."""
    specs = cells(search, trials, path, plugins)
    announce(specs, out)
    around = Around(out=out, plugins=tuple(plugins))
    failed = run_here_or_launched(launching.share(specs), launching, around)
    paths = [Cell(out, spec.description()).path for spec in specs]
    if failed or not all((place / "done").exists() for place in paths):
        return [], failed
    size = len(search.seeds)
    return [
        judge(trial, paths[i * size : (i + 1) * size]) for i, trial in enumerate(trials)
    ], failed


def judge(trial: Trial, paths: Sequence[Path]) -> Judged:
    """Read the records of a trial's seeds."""
    base, scores, every = 0.0, list[float](), list[bool]()
    for path in reversed(paths):
        try:
            lines = [line for line in read_lines(path / "evals.jsonl") if line["split"] == "unseen"]
            *_, last = (line for line in lines if line.get("kept", True))
            scores.insert(0, float(last["rewards"][trial.reward]))
            base = float(lines[0]["rewards"][trial.reward])
            every += [line.get("kept", True) for line in lines]
        except DAMAGED as error:
            raise UserError(f"{path}: its records are damaged ({error}); remove it") from error
    return Judged(trial=trial, base=base, scores=tuple(scores), kept=sum(every) / len(every))
