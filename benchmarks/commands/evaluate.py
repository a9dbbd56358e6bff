"""Evaluate LoRA checkpoints, their mixes, or the base model.

    run_benchmark.py evaluate                                 the base model
    run_benchmark.py evaluate CHECKPOINT...                   it, then each checkpoint
    run_benchmark.py evaluate CHECKPOINT... --mix 0.5 0.5     a soup of all of them
    run_benchmark.py evaluate ONE [OTHER] --sweep 5           from the base (or ONE) to ONE (OTHER)
    run_benchmark.py evaluate CHECKPOINT --parts 4            early or late sampling steps only

A CHECKPOINT is a cell, a folder, or a .safetensors file of a U-Net LoRA as diffusers loads it. All
pictures start from the noise of the runs' own evaluations. Each evaluation leaves a directory in
--out with its records and pictures, which the report draws.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.api import UserError
from benchmarks.cli import cli, load_plugins
from benchmarks.experiments.requests import Request
from benchmarks.records.state import DAMAGED, read_lines


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclass(frozen=True, kw_only=True)
class Options(Request):
    """What to evaluate, and on what."""

    checkpoints: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Cells, folders or .safetensors files; none: the base model alone."""


def parse(arguments: list[str]) -> Options:
    """The command line. Raises UserError."""
    options: Options = cli(
        Options, args=arguments, prog="run_benchmark.py evaluate", description=__doc__
    )
    return options


def main(arguments: list[str]) -> int:
    """Evaluate unless the same evaluation is there already, and print it."""
    options = parse(arguments)
    load_plugins(options.plugin)
    from benchmarks.experiments import checkpoints

    folder = checkpoints.run(options)
    try:
        text = table(read_lines(folder / "evals.jsonl"))
    except DAMAGED as error:
        raise UserError(f"{folder}: its records are damaged ({error}); remove it") from error
    print(text)
    print(f"\nRecords and pictures: {folder}{os.sep}")
    return 0


def table(rows: list[dict[str, Any]]) -> str:
    """Rewards and measures of every record of an evaluation."""
    import pandas as pd

    measures = ("diversity", "vendi", "drift", "collapse")
    flat = [
        {"": row["name"], "split": row["split"]}
        | row["rewards"]
        | {measure: row[measure] for measure in measures}
        for row in rows
    ]
    return str(pd.DataFrame(flat).to_string(index=False, float_format=lambda x: f"{x:.4f}"))
