"""Compare reward fine-tuning methods at matched compute.

    python run_benchmark.py --methods alignprop ddpo

needs no network: the default backbone is the embedded text-to-image model. Results (records,
reward curve, table, before/after pictures, LoRA checkpoints) go to --out. Each method's options
carry its name, e.g. --alignprop.truncation.mode full; they are listed by
--methods NAME --help.

    python run_benchmark.py --suite paper [--quick]         every table and figure of the paper
    python run_benchmark.py --list [methods|rewards|backbones|tasks]
    python run_benchmark.py plan --methods alignprop ddpo --backbone sd15      what it will cost
    python run_benchmark.py new method NAME [--dir DIR]     a method that already runs, to change
    python run_benchmark.py check FILE                      does the method keep the contract?
    python run_benchmark.py status DIR [DIR ...]            done, running, failed, missing cells
    python run_benchmark.py evaluate [CHECKPOINT ...]       checkpoints, soups, the base model
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks import config, registry
from benchmarks.api import UserError
from benchmarks.cli import cli, explained, renamed
from benchmarks.commands import list as listing
from benchmarks.harness import interrupt
from benchmarks.records import tracking

#: Subcommands: the module whose ``main(arguments)`` runs each and returns the exit code.
COMMANDS = {
    "plan": "benchmarks.forecast.forecast",
    "new": "benchmarks.commands.new",
    "check": "benchmarks.commands.check",
    "evaluate": "benchmarks.experiments.checkpoints",
    "status": "benchmarks.records.state",
}


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare, and with how much compute."""

    methods: tuple[str, ...] = ("alignprop", "ddpo")
    """Names of methods (see --list methods)."""
    backbone: str = "emoji"
    """A name (see --list backbones), a TOML file of your own, a diffusers folder or a hub id."""
    reward: str = "jpeg"
    """What to optimise: a name (see --list rewards), 0.7*jpeg+0.3*alignment or my_file.py:score."""
    held_out: tuple[str, ...] | None = None
    """Rewards that are only reported. Default: the task's."""
    task: str | None = None
    """Prompts and splits: a name (see --list tasks) or a TOML file. Default: the preset's."""
    budget: str | None = None
    """KIND=AMOUNT per cell (flops, queries, nfe, steps, seconds). Default: the preset's."""
    seeds: tuple[int, ...] = (0,)
    """One cell per method and seed."""
    precision: config.Precision | None = None
    """Of the frozen base model; LoRA stays float32. Default: bf16 on CUDA, else fp32."""
    keep: config.KeepChoice = "auto"
    """What is kept for the backward pass: all activations, the latents between sampling steps, or
    of each pass its blocks' inputs too. auto: the fastest of these that fits."""
    compile: bool = False
    """Put the denoiser through torch.compile: faster steps after a minute or two, for long runs."""
    out: Path = Path("runs")
    """Where results go; finished cells there are not run again."""
    config: Path | None = None
    """A TOML file with a table per method."""
    plugin: tuple[Path, ...] = ()
    """Python files that register methods, rewards, backbones or tasks. They are run."""
    track: tracking.Name | None = None
    """Also send records and pictures to a tracker; TensorBoard's files lie in each cell."""
    shard: str = "1/1"
    """I/N: only every N-th cell, from the I-th (counted from 1)."""
    launch: Literal["local", "slurm"] | None = None
    """Run each cell as a process, or as a Slurm job."""
    jobs: int | None = None
    """With --launch: how many at once. Default: 1 locally, all on Slurm."""
    partition: str | None = None
    """With --launch slurm: where. Other settings through sbatch's environment (SBATCH_GPUS=1)."""


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 1 a cell failed, 2 bad input, 130 interrupted."""
    arguments = renamed(arguments)
    try:
        if arguments and arguments[0] in COMMANDS:
            command = importlib.import_module(COMMANDS[arguments[0]])
            return int(command.main(arguments[1:]))
        if "--list" in arguments:
            return listing.main(arguments)
        if any(argument.split("=")[0] == "--suite" for argument in arguments):
            return reproduce(arguments)
        return compare(arguments)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # of several processes, one says so
            print(f"run_benchmark.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        resumes = not arguments or arguments[0] not in COMMANDS
        hint = "; the same command goes on from the last checkpoint" if resumes else ""
        print(f"interrupted{hint}", file=sys.stderr)
        return 130


def parse(arguments: list[str]) -> tuple[Options, dict[str, Any]]:
    """The options and one Config per method, from all layers."""
    plain = [a for a in arguments if a not in ("-h", "--help")]
    first, _ = cli(Options, args=plain, return_unknown_args=True)
    if len(set(first.methods)) < len(first.methods):
        raise UserError("--methods: name each method once; --seeds repeats them")
    for plugin in first.plugin:
        registry.load_plugin(plugin)
    wants_help = plain != arguments
    fields: list[Any] = [("options", Annotated[Options, tyro.conf.arg(name="")], first)]
    for name, (defaults, sources) in layered(first).items():
        shown = explained(defaults, sources) if wants_help else defaults
        fields.append((_identifier(name), type(shown), field(default=shown)))
    combined = dataclasses.make_dataclass("All", fields, frozen=True)
    parsed = cli(combined, args=arguments, description=__doc__, prog="run_benchmark.py")
    options = parsed.options
    return options, {name: getattr(parsed, _identifier(name)) for name in first.methods}


def layered(options: Options) -> dict[str, tuple[Any, dict[str, str]]]:
    """Per method its Config below the command line, and where each value comes from."""
    preset = config.load_preset(options.backbone)
    chosen = config.read_toml(options.config) if options.config else {}
    for table in chosen.keys() - set(options.methods):
        near = difflib.get_close_matches(table, options.methods, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "its tables are named for --methods"
        raise UserError(f"{options.config}: unknown table {table!r}; {hint}")
    found = {}
    for name in options.methods:
        layer = (chosen.get(name, {}), f"{options.config}, table {name}")
        defaults = config.method_defaults(name, preset, layer)
        found[name] = (defaults, config.method_sources(name, preset, layer))
    return found


def provenance(arguments: list[str], options: Options) -> dict[str, dict[str, str]]:
    """Per method, where every value of its cells comes from, for ``cell.json``."""
    given = {a.split("=")[0][2:].replace("-", "_") for a in arguments if a.startswith("--")}
    own = dict.fromkeys(("backbone", "reward", "seeds", "keep"), "default")
    preset = config.load_preset(options.backbone)["name"]
    own |= dict.fromkeys(("task", "budget"), f"preset {preset}")
    own |= {name: "command line" for name in own if name in given}
    found = {}
    for name, (_, sources) in layered(options).items():
        found[name] = dict(own)
        for key, source in sources.items():
            table, _, last = f"{_identifier(name)}.{key}".rpartition(".")
            typed = {f"{table}.{last}", f"{table}.no_{last}"} & given
            found[name][f"config.{key}"] = "command line" if typed else source
    return found


def reproduce(arguments: list[str]) -> int:
    """Run a suite, then write and print its report."""
    from analysis.suite import write_suite
    from benchmarks import distributed
    from benchmarks.experiments import suite

    options = suite.parse(arguments)
    out, failed = suite.run(options)
    if distributed.rank() == 0:
        for name, reason in failed.items():
            print(f"{name} failed: {reason}", file=sys.stderr)
        if options.shard == "1/1":
            print(write_suite(out), end="")
    return 1 if failed else 0


def _identifier(name: str) -> str:
    return name.replace("-", "_")


def compare(arguments: list[str]) -> int:
    """Run every cell, then write and print the report."""
    options, configs = parse(arguments)
    from analysis.report import write_report
    from benchmarks import distributed
    from benchmarks.experiments import launch
    from benchmarks.experiments.cells import plan, run_cells, specs

    cells = specs(
        configs,
        backbone=options.backbone,
        reward=options.reward,
        task=options.task,
        budget=options.budget,
        seeds=options.seeds,
        precision=options.precision,
        keep=options.keep,
        compile=options.compile,
        sources=provenance(arguments, options),
        held_out=options.held_out,
    )
    if options.track:
        tracking.require(options.track)
    mine = range(len(cells))[launch.parse_shard(options.shard)]
    if not mine:
        raise UserError(f"--shard {options.shard}: there are only {len(cells)} cells")
    distributed.start()
    first = distributed.rank() == 0
    if first:
        plan(cells, options.out)
    if options.launch:
        failed = launch.run_launched(
            options.launch,
            arguments,
            cells,
            mine,
            jobs=options.jobs,
            out=options.out,
            partition=options.partition,
        )
    else:
        _, failed = run_cells([cells[i] for i in mine], options.out, options.track)
    if not first:
        return 1 if failed else 0
    for name, reason in failed.items():
        print(f"{name} failed: {reason}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(mine)} cells failed", file=sys.stderr)
    if len(mine) == len(cells):
        try:
            print(write_report(options.out))
        except OSError as error:
            print(f"--out {options.out}: no report, {error}; records are kept", file=sys.stderr)
            return 1
        print(f"\nCurves, table and pictures: {options.out}/")
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    interrupt.listen()
    sys.exit(main(sys.argv[1:]))
