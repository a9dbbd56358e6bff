"""How far the cells in directories of runs are.

Several directories, say of several machines, are read as one: of a cell that is in more than one
the furthest counts.
"""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from benchmarks.api import UserError
from benchmarks.compute.budget import BUDGETS

#: What a cell can be, from the furthest to the least.
STATES = ("done", "running", "failed", "unfinished", "missing")
#: What reading records raises if they are not as they were written.
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
#: A cell of which one of these exists has been started.
BEGUN = ("lock", "steps.jsonl", "evals.jsonl", "failed.json", "done")


def collect(roots: list[Path]) -> dict[str, tuple[str, str]]:
    """Directory name of every announced or started cell -> state and detail."""
    cells: dict[str, tuple[str, str]] = {}
    for root in roots:
        if not root.is_dir():
            raise UserError(f"status: {root} is no directory")
        there = {file.parent for name in ("lock", "cell.json") for file in root.glob(f"*/{name}")}
        for path in sorted(there):
            found = look(path)
            known = cells.get(path.name, ("missing", ""))
            cells[path.name] = min(found, known, key=lambda cell: STATES.index(cell[0]))
    return cells


def look(path: Path) -> tuple[str, str]:
    """The state of the cell at ``path`` and what there is to say about it."""
    if (path / "done").exists():
        return "done", progress(path)
    if locked(path / "lock"):
        return "running", progress(path)
    if (path / "failed.json").exists():
        return "failed", why(path)
    return ("unfinished", progress(path)) if begun(path) else ("missing", "")


def begun(path: Path) -> bool:
    """Whether there is more in a cell's directory than its announcement."""
    return any((path / name).exists() for name in BEGUN)


def locked(path: Path) -> bool:
    """Whether a process on this machine, or on the same file system, runs the cell."""
    if not path.is_file():  # records alone, from a repository
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks does not say
            return False
    return False


def why(path: Path) -> str:
    """One line on why the cell failed."""
    try:
        failure = json.loads((path / "failed.json").read_text("utf-8"))
        lines = str(failure["error"]).strip().splitlines() or ["no message"]
        return f"step {failure['step']}: {failure['type']}: {lines[0]}"
    except DAMAGED:
        return "failed.json cannot be read"


def progress(path: Path) -> str:
    """The last optimizer step and its share of the budget."""
    try:
        budget = json.loads((path / "cell.json").read_text("utf-8"))["budget"]
        last = last_record(path / "steps.jsonl")
        share = last[BUDGETS[budget["kind"]]] / budget["amount"]
        return f"step {last['step']}, {share:.0%} of the budget"
    except FileNotFoundError:
        return "no step yet"
    except DAMAGED as error:
        return f"its records cannot be read ({error})"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file. Raises one of ``DAMAGED`` for what is none."""
    return [dict(json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def last_record(path: Path) -> dict[str, Any]:
    """The last whole line of a JSON-lines file."""
    lines = path.read_text("utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if not whole:
        raise FileNotFoundError(path)
    record: dict[str, Any] = json.loads(whole[-1])
    return record
