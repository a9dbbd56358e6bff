"""Say how far each cell in directories of runs is, one line per cell.

Several directories, say of several machines, are read as one: of a cell that is in more than one
the furthest counts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.api import UserError
from benchmarks.cli import cli
from benchmarks.records.state import STATES, collect


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where to look."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Directories of runs, as given to --out."""


def main(arguments: list[str]) -> int:
    """Print the state of every cell; exit code 0 if all are done, 1 otherwise."""
    options: Options = cli(
        Options, args=arguments, prog="run_benchmark.py status", description=__doc__
    )
    if not options.runs:
        raise UserError("status: name a directory of runs")
    cells = collect(list(options.runs))
    if not cells:
        raise UserError(f"status: no cells in {', '.join(map(str, options.runs))}")
    width = max(len(name) for name in cells)
    for name, (state, detail) in sorted(cells.items()):
        print(f"{name:{width}}  {state:10}  {detail}".rstrip())
    counts = Counter(state for state, _ in cells.values())
    print(f"{len(cells)} cells: " + ", ".join(f"{counts[s]} {s}" for s in STATES if counts[s]))
    return 0 if counts["done"] == len(cells) else 1
