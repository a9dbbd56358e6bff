"""Rebuild the report of directories of runs, or of a suite's results, from their records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.api import UserError
from benchmarks.cli import cli


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclass(frozen=True, kw_only=True)
class Options:
    """What to report on."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Directories of cells, or one that holds suites (their tables, figures and claims)."""
    out: Path | None = None
    """Where the report goes. Default: the first of the directories."""


def main(arguments: list[str]) -> int:
    """Print the main table; exit code 2 and one line when there is nothing to report."""
    options: Options = cli(
        Options, args=arguments, prog="run_benchmark.py report", description=__doc__
    )
    from analysis.__main__ import rebuild
    from analysis.records import ReportError

    if not options.runs:
        raise UserError("report: name a directory of runs")
    try:
        print(rebuild(options.runs, options.out), end="")
    except (ReportError, OSError) as error:
        raise UserError(f"report: {error}") from error
    return 0
