"""``python -m analysis RUNS... [--out DIR]``: rebuild the report of directories of runs.

Of a directory with suites (``run_benchmark.py --suite``): their tables, figures and claims.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.records import ReportError
from analysis.report import write_report
from analysis.suite import check, write_suite


def main() -> int:
    """Print the table; exit code 2 and one line on stderr when there is nothing to report."""
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUNS", help="directories of cells")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the first of RUNS")
    options = parser.parse_args()
    try:
        if suite := check(options.runs):
            print(write_suite(suite), end="")
            return 0
        print(write_report(*options.runs, out=options.out), end="")
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
