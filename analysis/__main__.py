"""``python -m analysis RUNS_DIR``: rebuild the report of a directory of runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.records import ReportError
from analysis.report import write_report


def main() -> int:
    """Print the table; exit code 2 and one line on stderr when there is nothing to report."""
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    parser.add_argument("runs", type=Path, metavar="RUNS_DIR", help="holds one directory per cell")
    try:
        print(write_report(parser.parse_args().runs), end="")
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
