"""Reads a directory of runs into comparisons: cells that share everything but method and seed.

A directory of runs holds one directory per cell with ``cell.json``, ``steps.jsonl``,
``evals.jsonl``, ``images/<split>/<step>/<index>.png`` and ``done`` or ``failed.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.records import BUDGETS, ReportError, read_evals, read_steps


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run; ``label`` is its method, with the config values that set it apart from others."""

    path: Path
    info: Mapping[str, Any]  # cell.json
    label: str
    finished: bool
    last_step: int  # of steps.jsonl; 0 when none was taken


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Cells with the same task, train reward, backbone and budget.

    ``evals`` has one row per (cell, split, step): cell, label, seed, split, step, fraction,
    the cumulative ``COUNTERS``, spent (in ``budget_unit``), diversity, per_image and one column per
    reported reward. ``steps`` has one row per (cell, optimizer step), as the run recorded it.
    """

    task: str
    reward: str  # optimised
    held_out: tuple[str, ...]
    units: Mapping[str, str]
    backbone: str
    budget_unit: str
    budget: float  # in budget_unit
    cells: Sequence[Cell]
    evals: pd.DataFrame
    steps: pd.DataFrame

    @property
    def title(self) -> str:
        """What was held fixed, in one line."""
        budget = f"{self.budget:,.4g} {self.budget_unit}"
        return f"{self.task}, train reward {self.reward}, backbone {self.backbone}, {budget}"


def collect(root: Path) -> tuple[list[Comparison], dict[str, str]]:
    """All comparisons below ``root``, and the cells that failed or cannot be read, with why."""
    if not root.is_dir():
        raise ReportError(f"{root}: no such directory")
    if (root / "cell.json").is_file():
        raise ReportError(f"{root}: is a single cell; give the directory that holds it")
    paths = sorted(path.parent for path in root.glob("*/cell.json"))
    if not paths:
        raise ReportError(f"{root}: no runs here (looked for */cell.json)")
    failed: dict[str, str] = {}
    groups: dict[tuple[Any, ...], list[tuple[Path, dict[str, Any], Any, Any]]] = {}
    for path in paths:
        try:
            if (path / "failed.json").is_file() and not (path / "done").exists():
                error = json.loads((path / "failed.json").read_text(encoding="utf-8"))["error"]
                raise ReportError((str(error).strip() or "no message").splitlines()[-1])
            info = json.loads((path / "cell.json").read_text(encoding="utf-8"))
            names = ("task", "reward", "backbone")
            budget = info["budget"]
            key = (*(info[name] for name in names), budget["kind"], float(budget["amount"]))
            run = (path, info, read_evals(path, info), read_steps(path))
            groups.setdefault(key, []).append(run)
        except ReportError as error:
            failed[path.name] = str(error)
        except (KeyError, TypeError, ValueError) as error:
            failed[path.name] = f"unreadable records: {type(error).__name__}: {error}"
    return [_compare(key, runs) for key, runs in groups.items()], failed


def _compare(key: tuple[Any, ...], runs: list[tuple[Path, dict[str, Any], Any, Any]]) -> Comparison:
    task, reward, backbone, kind, amount = key
    _, divisor, unit = BUDGETS.get(kind, ("", 1.0, kind))
    labels = _labels([info for _, info, _, _ in runs])
    cells, evals, steps = [], [], []
    for (path, info, some_evals, some_steps), label in zip(runs, labels, strict=True):
        last = 0 if some_steps.empty else int(some_steps["step"].max())
        done = (path / "done").exists()
        cells.append(Cell(path=path, info=info, label=label, finished=done, last_step=last))
        evals.append(some_evals.assign(label=label))
        steps.append(some_steps)
    names = dict.fromkeys(name for _, info, _, _ in runs for name in info["reported"])
    trained = {reward, *(info.get("train_reward", reward) for _, info, _, _ in runs)}
    units = {name: unit for _, info, _, _ in runs for name, unit in info["units"].items()}
    return Comparison(
        task=task,
        reward=reward,
        backbone=backbone,
        cells=cells,
        units=units,
        held_out=tuple(name for name in names if name not in trained),
        budget=amount / divisor,
        budget_unit=unit,
        evals=pd.concat(evals, ignore_index=True),
        steps=pd.concat(steps, ignore_index=True),
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif name != "seed":
            flat[prefix + name] = str(value)
    return flat


def _labels(infos: Sequence[Mapping[str, Any]]) -> list[str]:
    """The method's name, or with the config values that differ: variants are never averaged."""
    labels = []
    for info in infos:
        same = [_flat(other["config"]) for other in infos if other["method"] == info["method"]]
        mine = _flat(info["config"])
        keys = [k for k in mine if any(other.get(k) != mine[k] for other in same)]
        values = ", ".join(f"{key.rpartition('.')[2]}={mine[key]}" for key in keys)
        labels.append(f"{info['method']} ({values})" if values else info["method"])
    return labels
