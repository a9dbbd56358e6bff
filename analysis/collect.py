"""Reads directories of runs into comparisons: cells that share everything but method and seed.

A directory of runs holds one directory per cell with ``cell.json``, ``steps.jsonl``,
``evals.jsonl``, ``images/<split>/<step>/<index>.png`` and ``done`` or ``failed.json``; and one per
``run_benchmark.py evaluate`` with ``evaluation.json``, ``evals.jsonl`` and
``images/<split>/<candidate>/<index>.png``. A directory with ``cell.json`` alone
is a cell that was asked for and never begun.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.records import (
    BUDGETS,
    MEASURES,
    Note,
    ReportError,
    natural,
    number,
    read_evals,
    read_json,
    read_lines,
    read_steps,
)

#: What every ``cell.json`` says.
NEEDED = ("method", "task", "reward", "backbone", "seed", "budget", "config", "reported", "units")


#: And of what type.
KINDS: Mapping[str, type] = {
    **dict.fromkeys(("method", "task", "reward", "backbone", "train_reward"), str),
    **dict.fromkeys(("seed", "rank"), int),
    **dict.fromkeys(("budget", "config", "units", "prompts", "content"), dict),
    "reported": list,
    "placebo": bool,
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run; ``label`` is its method, with the config values that set it apart from others."""

    path: Path
    info: Mapping[str, Any]  # cell.json
    label: str
    finished: bool
    last_step: int  # of steps.jsonl; 0 when none was taken
    peak_bytes: float  # of device memory; NaN where it was not recorded

    @property
    def placebo(self) -> bool:
        """Whether its rewards were without meaning in training, so that it could learn nothing."""
        return bool(self.info.get("placebo"))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Cells with the same rules, task, train reward, backbone, kind of budget and evaluation.

    They differ in method, configuration, rank and seed, and in a suite also in the amount of the
    budget. Placebos, whose rewards were without meaning, stand with the runs of the reward itself.

    ``evals`` has one row per (cell, split, step, fraction): these, label, seed, the cumulative
    ``COUNTERS``, spent (in ``budget_unit``), ``MEASURES``, per_image, whole, kept and one column
    per reported reward.
    """

    task: str
    reward: str  # optimised
    held_out: tuple[str, ...]
    units: Mapping[str, str]
    backbone: str
    budget_unit: str
    budgets: Sequence[float]  # in budget_unit, ascending
    cells: Sequence[Cell]
    evals: pd.DataFrame

    @property
    def title(self) -> str:
        """What was held fixed, in one line."""
        budget = f"{' or '.join(f'{b:,.4g}' for b in self.budgets)} {self.budget_unit}"
        return f"{self.task}, train reward {self.reward}, backbone {self.backbone}, {budget}"

    @property
    def labels(self) -> list[str]:
        """The methods, sorted."""
        return sorted({cell.label for cell in self.cells}, key=natural)

    def placebo(self, label: str) -> str | None:
        """The label of this method's placebo (the same settings), if there is one."""
        own = next(cell for cell in self.cells if cell.label == label)
        for cell in self.cells:
            same = cell.info["method"] == own.info["method"]
            if cell.placebo and same and settings(cell.info) == settings(own.info):
                return cell.label
        return None

    def seeds(self) -> list[int]:
        """How many seeds each method has."""
        return [int(n) for n in self.evals.groupby("label")["seed"].nunique()]


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One ``evaluate`` of checkpoints; ``rows`` are its records, base model first."""

    path: Path
    info: Mapping[str, Any]  # evaluation.json
    rows: Sequence[Mapping[str, Any]]

    @property
    def title(self) -> str:
        """What was evaluated, in one line."""
        names = []
        for checkpoint in self.info["checkpoints"]:
            method, seed = checkpoint.get("method"), checkpoint.get("seed")
            name = f"{method} on {checkpoint.get('reward')}" if method else None
            name = f"{name}, seed {seed}" if name and seed is not None else name
            names.append(name or Path(checkpoint["path"]).name)
        return f"{self.info['backbone']}: {'; '.join(names) or 'the base model'}"


@dataclass(frozen=True)
class Collected:
    """All there is; ``notes`` say what is missing, failed, repeated or not ours."""

    comparisons: list[Comparison]
    evaluated: list[Evaluated]
    notes: list[Note]


@dataclass(frozen=True, kw_only=True)
class Run:
    """The records of one cell, as they were read."""

    path: Path
    info: Mapping[str, Any]  # cell.json
    evals: pd.DataFrame
    steps: pd.DataFrame


def begun(folder: Path) -> bool:
    """Whether there are records of a cell or an evaluation, and not its announcement alone."""
    names = ("lock", "steps.jsonl", "evals.jsonl", "failed.json", "done", "evaluation.json")
    return any((folder / name).exists() for name in names)


def collect(*roots: Path, only: Mapping[str, str] | None = None) -> Collected:
    """Everything below ``roots``, whose order does not matter.

    Of cells that occur several times the one that got furthest counts. ``only`` names the
    directories that are wanted, and the label of each cell.
    """
    notes: list[Note] = []
    runs: dict[str, list[Run]] = {}
    evaluated = []
    directories = _directories(roots, notes, only)
    for path in directories:
        try:
            if (path / "evaluation.json").is_file():
                info = read_json(path / "evaluation.json")
                rows = read_lines(path / "evals.jsonl", notes)
                _check_evaluation(info, rows)
                evaluated.append(Evaluated(path=path, info=info, rows=rows))
            else:
                info = _info(path)
                evals, steps = read_evals(path, info, notes), read_steps(path, notes)
                run = Run(path=path, info=info, evals=evals, steps=steps)
                runs.setdefault(_key(info, only is not None), []).append(run)
        except ReportError as error:
            notes.append(Note("failed", path.name, str(error)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            text = f"foreign records ({type(error).__name__}: {error})"
            notes.append(Note("failed", path.name, text))
    comparisons = [_compare(runs[key], only or {}) for key in sorted(runs)]
    for comparison in comparisons:
        notes += _gaps(comparison)
    return Collected(comparisons, evaluated, sorted(notes))


def _directories(
    roots: Sequence[Path], notes: list[Note], only: Mapping[str, str] | None
) -> list[Path]:
    """Each cell and evaluation once, sorted by name."""
    found: list[Path] = []
    waiting: set[str] = set()
    for root in roots:
        if not root.is_dir():
            raise ReportError(f"{root}: no such directory")
        if (root / "cell.json").is_file():
            raise ReportError(f"{root}: is a single cell; give the directory that holds it")
        for folder in (path for path in root.iterdir() if path.is_dir()):
            if only is not None and folder.name not in only:
                continue
            if (folder / "evaluation.json").is_file():
                found.append(folder)
            elif (folder / "cell.json").is_file():
                if _announced(folder):
                    waiting.add(folder.name)
                else:
                    found.append(folder)
            elif any(folder.glob("*.jsonl")):
                notes.append(
                    Note("foreign", folder.name, "records without cell.json were left out")
                )
    waiting -= {path.name for path in found}
    notes += [Note("missing", name, "asked for and never begun") for name in waiting]
    if not found and not waiting:
        raise ReportError(f"{', '.join(map(str, roots))}: no runs here (looked for */cell.json)")
    found = sorted(found, key=lambda path: (path.name, _progress(path)))
    chosen = []
    for name, same in groupby(found, key=lambda path: path.name):
        copies = list(same)
        chosen.append(copies[-1])
        if len(copies) > 1:
            text = f"is there {len(copies)} times; the copy that got furthest counts"
            notes.append(Note("duplicated", name, text))
    return chosen


def _announced(folder: Path) -> bool:
    """Whether there is nothing but the description of a cell."""
    if begun(folder):
        return False
    try:
        return not set(NEEDED) - read_json(folder / "cell.json").keys()
    except ReportError:
        return False


def _progress(path: Path) -> tuple[bool, bytes]:
    """Sorts copies of one cell: the finished one last, then by records."""
    file = path / "evals.jsonl"
    content = file.read_bytes() if file.is_file() else b""
    return (path / "done").exists(), len(content).to_bytes(8, "big") + content


def _info(path: Path) -> dict[str, Any]:
    if (path / "failed.json").is_file() and not (path / "done").exists():
        error = str(read_json(path / "failed.json").get("error", ""))
        raise ReportError((error.strip() or "no message").splitlines()[-1])
    info = read_json(path / "cell.json")
    missing = [name for name in NEEDED if name not in info]
    if missing:
        raise ReportError(f"foreign: cell.json has no {', '.join(missing)}")
    for name, kind in KINDS.items():
        if name in info and not _is(info[name], kind):
            raise ReportError(f"damaged: cell.json has {info[name]!r:.30} as {name}")
    budget, reported = info["budget"], info["reported"]
    if not _is(budget.get("kind"), str) or not _is(budget.get("amount"), float):
        raise ReportError(f"damaged: cell.json has {budget!r:.60} as budget")
    for name in (info["reward"], *reported):
        if not _is(name, str) or name not in reported or not _is(info["units"].get(name), str):
            raise ReportError(f"damaged: cell.json does not report {name!r:.30} with its unit")
    return info


def _is(value: Any, kind: type) -> bool:
    """Whether a value of a record is of a type; an int is a float, True is no int."""
    return type(value) in (int, float) if kind is float else type(value) is kind


def _check_evaluation(info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises ReportError, or what ``collect`` catches, for records that are not an evaluation's."""
    words = [info["kind"], info["backbone"], info["reward"]]
    words += [checkpoint["path"] for checkpoint in info["checkpoints"]]
    for row in rows:
        words += [
            row["split"],
            row["name"],
            *(info["units"].get(name, "") for name in row["rewards"]),
        ]
        found = [row["candidate"], *row["part"], *row["coefficients"]]
        found += [row["rewards"][name] for name in rows[0]["rewards"]]
        _ = list(map(number, found + [row[name] for name in MEASURES]))
        _ = [picture["prompt"] for picture in row["per_image"]]
    if not all(type(word) is str for word in words):
        raise ReportError("damaged: the evaluation has something else where text should be")


def _key(info: Mapping[str, Any], any_amount: bool) -> str:
    """What a comparison has in common, as text that sorts."""
    names, budget = ("rules", "evaluation", "prompts"), info["budget"]
    fixed = [info["task"], info["reward"], info["backbone"], budget["kind"]]
    fixed += [] if any_amount else [budget["amount"]]
    return json.dumps([fixed, *(info.get(name) for name in names)], sort_keys=True)


def _gaps(comparison: Comparison) -> list[Note]:
    """Cells not finished or without a step, and seeds that other methods have and one has not."""
    seeds = {int(cell.info["seed"]) for cell in comparison.cells}
    notes = []
    for cell in comparison.cells:
        if not cell.finished:
            text = f"optimizer step {cell.last_step}"
            notes.append(Note("unfinished", cell.path.name, text))
        elif cell.last_step == 0:
            text = "the budget is too small for one optimizer step"
            notes.append(Note("no step", cell.path.name, text))
    for label in comparison.labels:
        there = {int(cell.info["seed"]) for cell in comparison.cells if cell.label == label}
        for seed in sorted(seeds - there):
            notes.append(Note("missing", f"{label}, seed {seed}", comparison.title))
    return notes


def _compare(
    runs: Sequence[Run],
    given: Mapping[str, str],
) -> Comparison:
    info = next((run.info for run in runs if not run.info.get("placebo")), runs[0].info)
    _, divisor, unit = BUDGETS.get(info["budget"]["kind"], ("", 1.0, info["budget"]["kind"]))
    cells, evals = [], []
    for run, label in zip(runs, _labels([run.info for run in runs]), strict=True):
        label = given.get(run.path.name, label)
        steps = run.steps
        cells.append(
            Cell(
                path=run.path,
                info=run.info,
                label=label,
                finished=(run.path / "done").exists(),
                last_step=0 if steps.empty else int(steps["step"].max()),
                peak_bytes=float(steps["peak_bytes"].max()) if "peak_bytes" in steps else math.nan,
            )
        )
        evals.append(run.evals.assign(label=label))
    trained = {run.info.get("train_reward", run.info["reward"]) for run in runs}
    trained.add(info["reward"])
    evals = [frame for frame in evals if not frame.empty] or evals[:1]
    return Comparison(
        task=info["task"],
        reward=info["reward"],
        backbone=info["backbone"],
        cells=cells,
        units=info["units"],
        held_out=tuple(name for name in info["reported"] if name not in trained),
        budgets=sorted({float(run.info["budget"]["amount"]) / divisor for run in runs}),
        budget_unit=unit,
        evals=pd.concat(evals, ignore_index=True),
    )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as dotted keys."""
    values: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{name}.")
        elif name != "seed":
            values[prefix + name] = str(value)
    return values


def settings(info: Mapping[str, Any]) -> dict[str, str]:
    """The configuration, the rank of the LoRA matrices, and what code and weights they were."""
    rank = {"rank": str(info["rank"])} if "rank" in info else {}
    content = {
        f"content of {what}": str(said)[:8] for what, said in info.get("content", {}).items()
    }
    return flat(info["config"]) | rank | content


def _labels(infos: Sequence[Mapping[str, Any]]) -> list[str]:
    """The method's name, or with the config values that differ: variants are never averaged."""
    known: dict[str, list[dict[str, str]]] = {}
    for info in infos:
        configs, mine = known.setdefault(info["method"], []), settings(info)
        if mine not in configs:
            configs.append(mine)
    labels = []
    for info in infos:
        mine = settings(info)
        keys = [k for k in mine if any(c.get(k) != mine[k] for c in known[info["method"]])]
        values = ", ".join(f"{key.rpartition('.')[2]}={mine[key]}" for key in keys)
        values = ", ".join(filter(None, ("placebo" if info.get("placebo") else "", values)))
        labels.append(f"{info['method']} ({values})" if values else info["method"])
    return labels
