"""Reads the records of one run: JSON lines in, pandas DataFrames out.

Nothing is written and nothing but the standard library and pandas is needed, so records can be read
where no method can run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

COUNTERS = ("flops", "reward_queries", "nfe", "seconds")
# budget kind -> (column of the evaluations, divisor, axis label)
BUDGETS = {
    "flops": ("flops", 1e12, "TFLOP"),
    "reward_queries": ("reward_queries", 1.0, "reward queries"),
    "queries": ("reward_queries", 1.0, "reward queries"),
    "steps": ("step", 1.0, "optimizer steps"),
    "seconds": ("seconds", 1.0, "seconds"),
}


class ReportError(Exception):
    """The directory cannot be reported on; shown as one line."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a last line cut short by a crash is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ReportError(f"{path.name} line {number} is not JSON") from error
    return records


def read_evals(path: Path, info: Mapping[str, Any]) -> pd.DataFrame:
    """The evaluations of the cell at ``path`` by step; ``info`` is its ``cell.json``."""
    column, divisor, _ = BUDGETS.get(info["budget"]["kind"], ("", 1.0, ""))
    rows = []
    for record in read_lines(path / "evals.jsonl"):
        row: dict[str, Any] = {"cell": path.name, "seed": int(info["seed"])}
        row |= {name: record[name] for name in ("split", "step", "fraction", *COUNTERS)}
        spent = row[column] / divisor if column else row["fraction"] * info["budget"]["amount"]
        row |= {"spent": spent, "diversity": record.get("diversity")}
        rows.append(row | {"per_image": record.get("per_image", [])} | record["rewards"])
    # A resumed run repeats evaluations: the later record is the one it went on from.
    frame = pd.DataFrame(rows, columns=None if rows else ["split", "step"])
    return frame.drop_duplicates(["split", "step"], keep="last").sort_values("step", kind="stable")


def read_steps(path: Path) -> pd.DataFrame:
    """The optimizer steps of the cell at ``path``; of a repeated one, the later record."""
    frame = pd.DataFrame(read_lines(path / "steps.jsonl"))
    if frame.empty:
        return frame
    return frame.drop_duplicates("step", keep="last").assign(cell=path.name)
