"""Run a suite: every table and figure of a paper (docs/how-to/suites.md)."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from benchmarks.cli import LAUNCHING, Launching, cli, load_plugins
from benchmarks.experiments.requests import Chosen


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclass(frozen=True, kw_only=True)
class Options(Chosen):
    """What to reproduce."""

    suite: tyro.conf.Positional[str]
    """A name (see list suites), or the TOML file of your own."""
    out: Path | None = None
    """Where results go; what is finished there is not run again. Default: results, or
    runs/SUITE-quick with --quick."""
    launching: LAUNCHING = field(default_factory=Launching)
    """Many cells at once."""


def parse(arguments: list[str]) -> Options:
    """The command line."""
    options: Options = cli(
        Options, args=arguments, prog="run_benchmark.py suite", description=__doc__
    )
    return options


def main(arguments: list[str]) -> int:
    """Run what is not finished, then write and print the suite's report; 1 if a cell failed."""
    options = parse(arguments)
    load_plugins(options.plugin)
    from analysis.records import ReportError
    from analysis.suite import write_suite
    from benchmarks import distributed
    from benchmarks.experiments import suite

    usual = Path(f"runs/{Path(options.suite).stem}-quick" if options.quick else "results")
    out = options.out or usual
    failed = suite.run(options, out, options.launching)
    if distributed.process() == 0:
        for name, reason in failed.items():
            print(f"{name} failed: {reason}", file=sys.stderr)
        if options.launching.whole:
            try:
                print(write_suite(out), end="")
            except (ReportError, OSError) as error:
                print(f"{out}: no report, {error}; records are kept", file=sys.stderr)
                return 1
    return 1 if failed else 0
