"""Reads the records of one directory: JSON lines in, pandas DataFrames out.

Nothing is written and nothing but the standard library and pandas is needed, so records can be read
where no method can run.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

COUNTERS = ("flops", "reward_queries", "nfe", "seconds")
#: What a reward alone hides, with units.
MEASURES = {
    "diversity": "1 - cosine",
    "vendi": "pictures",
    "drift": "1 - cosine",
    "collapse": "cosine",
}
SPLITS = {"train": "training", "unseen": "unseen"}  # of a run's evaluations, and in words
# budget kind -> (column of the evaluations, divisor, axis label)
BUDGETS = {
    "steps": ("step", 1.0, "optimizer steps"),
    "queries": ("reward_queries", 1.0, "reward queries"),
    "nfe": ("nfe", 1.0, "NFE"),
    "flops": ("flops", 1e12, "TFLOP"),
    "seconds": ("seconds", 1.0, "seconds"),
}


def natural(label: str) -> list[tuple[int, str]]:
    """Sorts labels as people do: K = 5 before K = 10."""
    return [(int(part or 0) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", label)]


@dataclass(frozen=True, order=True)
class Note:
    """What is missing, failed, repeated or not ours, and so not (fully) in a report."""

    kind: str
    """missing, failed, unfinished, no step, duplicated, truncated or foreign."""
    where: str
    """The cell, file or method it is about."""
    text: str = ""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.kind, self.where, self.text)))


def number(value: Any) -> float:
    """A number of a record; raises TypeError for anything else."""
    if type(value) not in (int, float):
        raise TypeError(f"{value!r:.30} is no number")
    return value


class ReportError(Exception):
    """The directory cannot be reported on; shown as one line."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; anything else is a ReportError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path.name} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise ReportError(f"{path.name} is not an object")
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file; what cannot be read is a ReportError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} cannot be read ({error})") from error


def read_lines(path: Path, notes: list[Note]) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a last line cut short by a crash is left out and noted.

    Raises ReportError for any other line that is not a JSON object.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise ReportError(f"{path.name} line {number} is not JSON") from error
            text = f"the last line of {path.name} was left out"
            notes.append(Note("truncated", path.parent.name, text))
            continue
        if not isinstance(record, dict):
            raise ReportError(f"{path.name} line {number} is not an object")
        records.append(record)
    return records


def read_evals(path: Path, info: Mapping[str, Any], notes: list[Note]) -> pd.DataFrame:
    """The evaluations of the cell at ``path`` by step; ``info`` is its ``cell.json``.

    ``whole``: every training prompt was drawn, so that nothing is said about others. ``kept``: the
    guard's verdict on training prompts (``benchmarks/compute/floors.py``); None without a guard.
    Records that are not evaluations, and repeated ones (the later counts: a resumed run went on
    from it), are left out and noted in ``notes``.
    """
    column, divisor, _ = BUDGETS.get(info["budget"]["kind"], ("", 1.0, ""))
    rows = []
    for record in read_lines(path / "evals.jsonl", notes):
        try:
            row: dict[str, Any] = {"cell": path.name, "seed": int(info["seed"])}
            row |= {"split": str(record["split"]), "step": int(record["step"])}
            row |= {name: number(record[name]) for name in ("fraction", *COUNTERS)}
            row |= {name: number(record["rewards"][name]) for name in info["reported"]}
            for picture in record.get("per_image", []):
                _ = picture["prompt"], [number(value) for value in picture["rewards"].values()]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            text = f"a record of evals.jsonl was left out ({type(error).__name__}: {error})"
            notes.append(Note("foreign", path.name, text))
            continue
        spent = row[column] / divisor if column else row["fraction"] * info["budget"]["amount"]
        pictures, asked = record.get("per_image", []), info.get("prompts") or {}
        listed = set(asked.get("train", ())) if record["split"] == "train" else set()
        whole = bool(listed) and listed <= {picture["prompt"] for picture in pictures}
        row |= {"spent": spent, "per_image": pictures, "whole": whole}
        row |= {"kept": record.get("kept"), "floors": record.get("floors")}
        measured = {name: record.get(name) for name in MEASURES}
        rows.append(
            row
            | {k: v if isinstance(v, float | int) else float("nan") for k, v in measured.items()}
        )
    frame = pd.DataFrame(rows, columns=None if rows else ["split", "step", "fraction"])
    once = frame.drop_duplicates(["split", "step", "fraction"], keep="last")
    if len(once) < len(frame):
        text = f"{len(frame) - len(once)} evaluations repeated; last counts"
        notes.append(Note("duplicated", path.name, text))
    if once.empty:
        return once
    judged = once[once["split"] == "train"].set_index(["step", "fraction"])["kept"].to_dict()
    kept = [judged.get((row.step, row.fraction), row.kept) for row in once.itertuples()]
    once = once.assign(kept=pd.Series(kept, index=once.index, dtype=object))
    return once.sort_values(["step", "fraction"], kind="stable")


def read_steps(path: Path, notes: list[Note]) -> pd.DataFrame:
    """The optimizer steps of the cell at ``path``; of a repeated one, the later record."""
    records = read_lines(path / "steps.jsonl", notes)
    foreign = [record for record in records if type(record.get("step")) is not int]
    if foreign:
        text = f"{len(foreign)} records of steps.jsonl without a step left out"
        notes.append(Note("foreign", path.name, text))
    frame = pd.DataFrame([record for record in records if record not in foreign])
    if frame.empty:
        return frame
    once = frame.drop_duplicates("step", keep="last")
    if len(once) < len(frame):
        text = f"{len(frame) - len(once)} optimizer steps repeated"
        notes.append(Note("duplicated", path.name, text))
    return once
