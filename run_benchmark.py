"""Compare reward fine-tuning methods at matched compute.

    python run_benchmark.py --methods alignprop ddpo

needs no network: the default backbone is the embedded text-to-image model. Results (records,
reward curve, table, before/after pictures, LoRA checkpoints) go to --out. Each method's options
carry its name, e.g. --alignprop.truncation.mode full; they are listed by
--methods NAME --help.

    python run_benchmark.py --list [methods|rewards|backbones|tasks]
    python run_benchmark.py new method NAME [--dir DIR]     a method that already runs, to change
    python run_benchmark.py check FILE                      does the method keep the contract?
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks import config, registry
from benchmarks.api import UserError
from benchmarks.listing import print_lists

#: Subcommands: the module whose ``main(arguments)`` runs each and returns the exit code.
COMMANDS = {"new": "benchmarks.new", "check": "benchmarks.contract"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare, and with how much compute."""

    methods: tuple[str, ...] = ("alignprop", "ddpo")
    """Names of methods (see --list methods)."""
    backbone: str = "emoji"
    """emoji (embedded), sd15, a diffusers folder or a hub id."""
    reward: str = "jpeg"
    """What to optimise (see --list rewards)."""
    task: str = "animals"
    """Prompts and splits: a name (see --list tasks) or a TOML file of your own."""
    budget: str | None = None
    """KIND=AMOUNT per cell (flops, queries, nfe, steps, seconds). Default: the preset's."""
    seeds: tuple[int, ...] = (0,)
    """One cell per method and seed."""
    precision: config.Precision | None = None
    """Of the frozen base model; LoRA stays float32. Default: bf16 on CUDA, else fp32."""
    out: Path = Path("runs")
    """Where results go; finished cells there are not run again."""
    config: Path | None = None
    """A TOML file with a table per method."""
    plugin: tuple[Path, ...] = ()
    """Python files that register methods or rewards. They are run."""


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 1 a cell failed, 2 bad input, 130 interrupted."""
    try:
        if arguments and arguments[0] in COMMANDS:
            command = importlib.import_module(COMMANDS[arguments[0]])
            return int(command.main(arguments[1:]))
        if "--list" in arguments:
            return print_lists(arguments[arguments.index("--list") + 1 :])
        return compare(arguments)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # of several processes, one says so
            print(f"run_benchmark.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def parse(arguments: list[str]) -> tuple[Options, dict[str, Any]]:
    """The options and one Config per method, from all layers."""
    plain = [a for a in arguments if a not in ("-h", "--help")]
    first, _ = tyro.cli(Options, args=plain, return_unknown_args=True)
    for plugin in first.plugin:
        registry.load_plugin(plugin)
    preset = config.load_preset(first.backbone)
    chosen = config.read_toml(first.config) if first.config else {}
    unknown = set(chosen) - set(first.methods)
    if unknown:
        raise UserError(f"{first.config}: no such method among --methods: {', '.join(unknown)}")
    fields: list[Any] = [("options", Annotated[Options, tyro.conf.arg(name="")], first)]
    for name in first.methods:
        defaults = config.method_defaults(name, preset, (chosen.get(name, {}), str(first.config)))
        fields.append((_identifier(name), type(defaults), field(default=defaults)))
    combined = dataclasses.make_dataclass("All", fields, frozen=True)
    parsed: Any = tyro.cli(combined, args=arguments, description=__doc__, prog="run_benchmark.py")
    options = parsed.options
    return options, {name: getattr(parsed, _identifier(name)) for name in first.methods}


def _identifier(name: str) -> str:
    return name.replace("-", "_")


def compare(arguments: list[str]) -> int:
    """Run every cell, then write and print the report."""
    options, configs = parse(arguments)
    from analysis.report import write_report
    from benchmarks.compare import run_cells, specs
    from benchmarks.distributed import rank, stop

    cells = specs(
        configs,
        backbone=options.backbone,
        reward=options.reward,
        task=options.task,
        budget=options.budget,
        seeds=options.seeds,
        precision=options.precision,
    )
    done, failed = run_cells(cells, options.out)
    first = rank() == 0
    stop()
    if not first:
        return 1 if failed else 0
    for name, reason in failed.items():
        print(f"{name} failed: {reason}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(cells)} cells failed, {len(done)} done", file=sys.stderr)
    print(write_report(options.out))
    print(f"\nCurves, table and pictures: {options.out}/")
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main(sys.argv[1:]))
