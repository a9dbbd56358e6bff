"""``run_benchmark.py status DIR [DIR ...]``: how far each planned cell is, one line per cell.

Several directories, say of several machines, are read as one: of a cell that is in more than one
the furthest counts.
"""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.api import UserError
from benchmarks.compute.budget import BUDGETS

#: What a cell can be, from the furthest to the least.
STATES = ("done", "running", "failed", "unfinished", "missing")


def main(arguments: list[str]) -> int:
    """Print the state of every cell; exit code 0 if all are done, 1 otherwise."""
    roots = [Path(a) for a in arguments]
    if not roots:
        raise UserError("status: name a directory of runs")
    cells = collect(roots)
    if not cells:
        raise UserError(f"status: no cells in {', '.join(arguments)}")
    width = max(len(name) for name in cells)
    for name, (state, detail) in sorted(cells.items()):
        print(f"{name:{width}}  {state:10}  {detail}".rstrip())
    counts = Counter(state for state, _ in cells.values())
    print(f"{len(cells)} cells: " + ", ".join(f"{counts[s]} {s}" for s in STATES if counts[s]))
    return 0 if counts["done"] == len(cells) else 1


def collect(roots: list[Path]) -> dict[str, tuple[str, str]]:
    """Directory name of every planned or started cell -> state and detail."""
    cells: dict[str, tuple[str, str]] = {}
    for root in roots:
        if not root.is_dir():
            raise UserError(f"status: {root} is no directory")
        for name in planned(root):
            cells.setdefault(name, ("missing", ""))
        started = {file.parent for name in ("lock", "cell.json") for file in root.glob(f"*/{name}")}
        for path in sorted(started):
            found, known = look(path), cells.get(path.name, ("missing", ""))
            cells[path.name] = min(found, known, key=lambda cell: STATES.index(cell[0]))
    return cells


def planned(root: Path) -> list[str]:
    """The cells that the commands so far wanted in ``root``, by directory name."""
    try:
        names: list[str] = json.loads((root / "plan.json").read_text("utf-8"))
        return names
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"{root / 'plan.json'} is not JSON ({error}); delete it") from error


def look(path: Path) -> tuple[str, str]:
    """The state of the cell at ``path`` and what there is to say about it."""
    if (path / "done").exists():
        return "done", progress(path)
    if locked(path / "lock"):
        return "running", progress(path)
    if (path / "failed.json").exists():
        return "failed", why(path)
    return "unfinished", progress(path)


def locked(path: Path) -> bool:
    """Whether a process on this machine, or on the same file system, runs the cell."""
    if not path.exists():  # records alone, from a repository
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def why(path: Path) -> str:
    """One line on why the cell failed."""
    try:
        failure = json.loads((path / "failed.json").read_text("utf-8"))
        lines = str(failure["error"]).strip().splitlines() or ["no message"]
        return f"step {failure['step']}: {failure['type']}: {lines[0]}"
    except (ValueError, KeyError):
        return "failed.json cannot be read"


def progress(path: Path) -> str:
    """The last optimizer step and its share of the budget."""
    try:
        budget = json.loads((path / "cell.json").read_text("utf-8"))["budget"]
        last = last_record(path / "steps.jsonl")
        share = last[BUDGETS[budget["kind"]]] / budget["amount"]
        return f"step {last['step']}, {share:.0%} of the budget"
    except (OSError, ValueError, LookupError):
        return "no step yet"


def last_record(path: Path) -> dict[str, Any]:
    """The last whole line of a JSON-lines file."""
    lines = path.read_text("utf-8").splitlines(keepends=True)
    record: dict[str, Any] = json.loads([line for line in lines if line.endswith("\n")][-1])
    return record
