"""Draw better pictures without training, and compare what they cost with trained cells.

    run_benchmark.py select                                        best-of-n and das, 2, 4 and 8
    run_benchmark.py select best-of-n --candidates 1 4 16 64       a curve of one
    run_benchmark.py select --reward jpeg --against runs           and when training is cheaper

A selection is paid for again with every picture, training once: the table says after how many
pictures both have cost the same, and how far their rewards are apart. Given again, the command
draws nothing again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import tyro

from benchmarks.api import UserError
from benchmarks.cli import cli, load_plugins
from benchmarks.experiments.requests import Selecting


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclass(frozen=True, kw_only=True)
class Options(Selecting):
    """Which selections, of how many candidates, and on what."""

    selections: tyro.conf.Positional[tuple[str, ...]] = ("best-of-n", "das")
    """Names (see list selections)."""


def parse(arguments: list[str]) -> Options:
    """The command line. Raises UserError."""
    options: Options = cli(
        Options, args=arguments, prog="run_benchmark.py select", description=__doc__
    )
    return options


def main(arguments: list[str]) -> int:
    """Draw unless the same record is there already; print and write the table."""
    options = parse(arguments)
    load_plugins(options.plugin)
    from analysis.break_even import markdown
    from analysis.records import ReportError
    from benchmarks.experiments import selection

    folder = selection.run(options)
    try:
        text = markdown(folder, options.against)
        (folder / "break_even.md").write_text(text, "utf-8")
    except (ReportError, OSError) as error:
        raise UserError(f"select: {error}") from error
    print(text)
    print(f"Record and pictures: {folder}{os.sep}")
    return 0
