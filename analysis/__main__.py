"""``python -m analysis RUNS... [--out DIR]``: rebuild the report of directories of runs.

Of a directory with suites (``run_benchmark.py suite``): their tables, figures and claims. The same
as ``run_benchmark.py report``, and works where no method can run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import tyro

from analysis.records import ReportError
from analysis.report import write_report
from analysis.suite import check, write_suite


def main(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path | None = None) -> int:
    """Rebuild the report of directories of runs.

    Args:
        runs: Directories of cells, or one that holds suites.
        out: Where the report goes. Default: the first of the directories.
    """
    try:
        print(rebuild(runs, out), end="", flush=True)
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def rebuild(runs: Sequence[Path], out: Path | None) -> str:
    """Write the report again and return its main table, or a suite's page.

    Raises ReportError when there is nothing to report.
    """
    suite = check(runs)
    return write_suite(suite) if suite else write_report(*runs, out=out)


if __name__ == "__main__":
    code = tyro.cli(main, prog="python -m analysis")
    with suppress(OSError):  # a full disk, which was said; else Python tries to write once more
        sys.stdout.close()
    sys.exit(code)
