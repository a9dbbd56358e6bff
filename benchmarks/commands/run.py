"""Compare methods at matched compute.

    python run_benchmark.py --methods alignprop ddpo

needs no network: the default backbone is the embedded text-to-image model. Results (records,
reward curve, table, before/after pictures, LoRA checkpoints) go to --out. Each method's options
carry its name, e.g. --alignprop.truncation.mode full; they are listed by
--methods NAME --help.

    python run_benchmark.py [run] --methods ...             compare methods
    python run_benchmark.py run DIR/cell.json ...           run or resume cells from their files
    python run_benchmark.py suite paper [--quick]           every table and figure of the paper
    python run_benchmark.py plan --methods ... | --suite NAME | FILE ...       what it will cost
    python run_benchmark.py list [methods|selections|rewards|...]
    python run_benchmark.py new method NAME [--dir DIR]     a method that already runs, to change
    python run_benchmark.py check FILE                      does the method keep the contract?
    python run_benchmark.py status DIR [DIR ...]            done, running, failed, missing cells
    python run_benchmark.py evaluate [CHECKPOINT ...]       checkpoints, soups, the base model
    python run_benchmark.py select [best-of-n ...]          better pictures without training
    python run_benchmark.py search [FILE]                   the same number of trials per method
    python run_benchmark.py report DIR [DIR ...]            tables, figures and pictures again
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks import config, registry
from benchmarks.api import UserError
from benchmarks.cli import LAUNCHING, Launching, cli, explained, given, load_plugins
from benchmarks.config import Layer
from benchmarks.records import tracking

COMMAND_LINE = "command line"
#: Options that are values of a cell.
CELL_OPTIONS = (
    *("backbone", "reward", "held_out", "task", "budget", "seeds", "precision", "keep"),
    "compile",
)


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclass(frozen=True, kw_only=True)
class First:
    """What is read first, because further options and their defaults depend on it."""

    methods: tuple[str, ...] = ("alignprop", "ddpo")
    """Names of methods (see list methods)."""
    backbone: str = "emoji"
    """A name (see list backbones), a TOML file of your own, a diffusers folder or a hub id."""
    config: Path | None = None
    """A TOML file with a table per method."""
    plugin: tuple[Path, ...] = ()
    """Python files that register methods, rewards, backbones or tasks. They are run."""


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclass(frozen=True, kw_only=True)
class Options(First):
    """What to compare, and with how much compute."""

    reward: str = "jpeg"
    """What to optimise: a name (see list rewards), 0.7*jpeg+0.3*alignment or my_file.py:score."""
    held_out: tuple[str, ...] | None = None
    """Rewards that are only reported. Default: the task's."""
    task: str | None = None
    """Prompts and splits: a name (see list tasks) or a TOML file. Default: the preset's."""
    budget: str | None = None
    """KIND=AMOUNT per cell (flops, queries, nfe, steps, seconds). Default: the preset's."""
    seeds: tuple[int, ...] = (0,)
    """One cell per method and seed."""
    precision: config.Precision | None = None
    """Of the frozen base model; LoRA stays float32. Default: bf16 on CUDA, else fp32."""
    keep: config.KeepChoice = "auto"
    """What is kept for the backward pass: all activations, the latents between sampling steps, or
    of each pass its blocks' inputs too. auto: the fastest of these that fits."""
    placebo: bool = False
    """Also run each method on a reward without meaning: what it gains there, it did not learn."""
    compile: bool = False
    """Put the denoiser through torch.compile: faster steps after a minute or two, for long runs."""
    out: Path = Path("runs")
    """Where results go; finished cells there are not run again."""
    track: tracking.Name | None = None
    """Also send records and pictures to a tracker; TensorBoard's files lie in each cell."""
    launching: LAUNCHING = field(default_factory=Launching)
    """Many cells at once."""


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Which cells to run, each from its file."""

    cells: tyro.conf.Positional[tuple[Path, ...]]
    """Files cell.json, as every cell of a comparison, suite or search has one."""
    out: Path | None = None
    """Where results go. Default: where the file lies, so that the cell is resumed."""
    reward: tuple[str, ...] = ()
    """Rewards of the files that are code (my_file.py:score) and may run."""
    held_out: tuple[str, ...] = ()
    """Held-out rewards of the files that are code and may run."""
    plugin: tuple[Path, ...] = ()
    """Python files that register what the cells name. They are run."""
    track: tracking.Name | None = None
    """Also send records and pictures to a tracker."""
    launching: LAUNCHING = field(default_factory=Launching)
    """Many cells at once."""


def main(arguments: list[str]) -> int:
    """Run every cell, then write and print the report; 1 if a cell failed."""
    files = takewhile(lambda word: not word.startswith("-"), arguments)
    return from_files(arguments) if any(files) else compare(arguments)


# A comparison


def compare(arguments: list[str]) -> int:
    """Run the cells that the options name."""
    options, layers, sources = parse(arguments)
    from benchmarks.experiments.cells import resolve

    chosen: Any = {name: getattr(options, name) for name in CELL_OPTIONS}
    named = [options.reward, *(options.held_out or ()), *map(str, options.plugin)]
    arms = (False, True) if options.placebo else (False,)
    cells = [
        cell
        for placebo in arms
        for cell in resolve(layers, **chosen, placebo=placebo, given=sources, named=named)
    ]
    return run(cells, options.out, options)


def run(cells: list[Any], out: Path, options: Options | FileOptions) -> int:
    """Run this shard's cells in ``out`` and say how they ended; the report if all were to run."""
    from analysis.records import ReportError
    from analysis.report import write_report
    from benchmarks import distributed
    from benchmarks.experiments.cells import announce
    from benchmarks.experiments.launch import Around, run_here_or_launched

    if options.track:
        tracking.require(options.track)
    mine = options.launching.share(cells)
    distributed.start()
    announce(cells, out)
    around = Around(out=out, plugins=options.plugin, track=options.track)
    failed = run_here_or_launched(mine, options.launching, around)
    if distributed.process() != 0:
        return 1 if failed else 0
    for name, reason in failed.items():
        print(f"{name} failed: {reason}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(mine)} cells failed", file=sys.stderr)
    if options.launching.whole and isinstance(options, Options):
        try:
            print(write_report(out))
        except (ReportError, OSError) as error:
            print(f"--out {out}: no report, {error}; records are kept", file=sys.stderr)
            return 1
        print(f"\nCurves, table and pictures: {out}/")
    return 1 if failed else 0


def parse(
    arguments: list[str],
) -> tuple[Options, dict[str, list[Layer]], dict[str, str]]:
    """The options, what goes over each method's preset, and where the options come from."""
    plain = [a for a in arguments if a not in ("-h", "--help")]
    first, _ = cli(First, args=plain, return_unknown_args=True)
    if len(set(first.methods)) < len(first.methods):
        raise UserError("--methods: name each method once; --seeds repeats them")
    load_plugins(first.plugin)
    preset = config.load_preset(first.backbone)
    layers = from_config_file(first)
    defaults: dict[str, Any] = {}
    for name in first.methods:
        values, sources = config.method_config(name, preset, *layers[name])
        defaults[name] = explained(values, sources) if plain != arguments else values
    options = Annotated[Options, tyro.conf.arg(name="")]
    fields: list[Any] = [("options", options, field(default_factory=Options))]
    fields += [(_identifier(n), type(v), field(default=v)) for n, v in defaults.items()]
    form = dataclasses.make_dataclass("All", fields, frozen=True)
    parsed = cli(form, args=arguments, description=__doc__, prog="run_benchmark.py")
    typed = given(form, arguments)
    for name in first.methods:
        own = f"{_identifier(name)}."
        names = [key.removeprefix(own) for key in typed if key.startswith(own)]
        values = _nested(names, getattr(parsed, _identifier(name)))
        layers[name].append((values, COMMAND_LINE))
    own_options = [name for name in CELL_OPTIONS if f"options.{name}" in typed]
    return parsed.options, layers, dict.fromkeys(own_options, COMMAND_LINE)


def from_config_file(options: First) -> dict[str, list[Layer]]:
    """Per method, its table in the file of ``--config``. Raises UserError for other tables."""
    chosen = config.read_toml(options.config) if options.config else {}
    for table in chosen.keys() - set(options.methods):
        known = registry.hint(table, options.methods)
        raise UserError(f"{options.config}: unknown table {table!r}; {known}")
    return {
        name: [(chosen[name], f"{options.config}, table {name}")] if name in chosen else []
        for name in options.methods
    }


def _nested(names: list[str], values: Any) -> dict[str, Any]:
    """The values of these dotted names, as nested tables."""
    found: dict[str, Any] = {}
    for name in names:
        table = found
        value = values
        *tables, last = name.split(".")
        for part in tables:
            table = table.setdefault(part, {})
            value = getattr(value, part)
        table[last] = getattr(value, last)
    return found


def _identifier(name: str) -> str:
    return name.replace("-", "_")


# Cells from their files


def from_files(arguments: list[str]) -> int:
    """Run or resume cells, each from its own file."""
    options: FileOptions = cli(
        FileOptions, args=arguments, prog="run_benchmark.py run", description=__doc__
    )
    load_plugins(options.plugin)
    from benchmarks.experiments.cells import code_files, refuse_code
    from benchmarks.harness.spec import Spec

    by_place: dict[Path, list[Spec]] = {}
    named = [*options.reward, *options.held_out, *map(str, options.plugin)]
    for path in options.cells:
        spec = Spec.read(path)
        refuse_code(code_files([spec]), named, str(path))
        by_place.setdefault(place(path, options.out), []).append(spec)
    return max(run(cells, out, options) for out, cells in by_place.items())


def place(file: Path, out: Path | None) -> Path:
    """Where a cell runs: ``out``, or beside its present directory."""
    if out is not None:
        return out
    return file.resolve().parent.parent if file.name == "cell.json" else Path("runs")
