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
import os
import re
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks import config, registry
from benchmarks.api import UserError

LISTS = ("methods", "rewards", "backbones", "tasks")


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
    out: Path = Path("runs")
    """Where results go; finished cells there are not run again."""
    config: Path | None = None
    """A TOML file with a table per method."""
    plugin: tuple[Path, ...] = ()
    """Python files that register methods or rewards. They are run."""


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 1 a cell failed, 2 bad input, 130 interrupted."""
    try:
        if arguments[:1] == ["new"]:
            return new(arguments[1:])
        if arguments[:1] == ["check"]:
            return check(arguments[1:])
        if "--list" in arguments:
            return print_lists(arguments[arguments.index("--list") + 1 :])
        return compare(arguments)
    except UserError as error:
        print(f"run_benchmark.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def print_lists(kinds: list[str]) -> int:
    """Print the known methods, rewards, backbones and tasks, with where each comes from."""
    for kind in kinds or LISTS:
        if kind not in LISTS:
            raise UserError(f"--list {kind}: choose from {', '.join(LISTS)}")
        print(f"{kind}:")
        if kind in ("methods", "rewards"):
            known = registry.methods if kind == "methods" else registry.rewards
            for name in known.names():
                headline = (known.get(name).__doc__ or "").split("\n")[0]
                summary = known.variants.get(name, headline)
                print(f"  {name:24} {summary} [{known.origins[name]}]")
            for where, why in known.broken.items():
                print(f"  broken: {where}: {why}")
        elif kind == "tasks":
            for name in config.task_names():
                task = config.load_task(name)
                print(f"  {name:24} {len(task.train)} training, {len(task.unseen)} unseen prompts")
        else:
            from benchmarks.backbone.lora_sd import BACKBONES

            for name, place in BACKBONES.items():
                print(f"  {name:24} {'embedded' if name == 'emoji' else place}")
    return 0


def new(arguments: list[str]) -> int:
    """``new method NAME [--dir DIR]``: write a commented method that already runs."""
    usage = "new: write `new method NAME`, with a NAME like my_idea, and optionally `--dir DIR`"
    if (
        len(arguments) not in (2, 4)
        or arguments[0] != "method"
        or arguments[2:3] not in ([], ["--dir"])
    ):
        raise UserError(usage)
    name, folder = arguments[1], Path(arguments[3] if len(arguments) == 4 else ".")
    if not name.isidentifier():
        raise UserError(usage)
    path = folder / f"{name}.py"
    if path.exists():
        raise UserError(f"{path} exists already; choose another name or move it away")
    text = (Path(__file__).parent / "methods" / "_template.py").read_text("utf-8")
    words = {"NAME": name, "CLASS": name.title().replace("_", ""), "PATH": str(path)}
    for word, value in words.items():
        text = re.sub(rf"\b{word}\b", value, text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    print(f"{path} runs as it is: python run_benchmark.py check {path}")
    return 0


def check(arguments: list[str]) -> int:
    """``check FILE``: run the contract on every method a plugin file registers."""
    if len(arguments) != 1:
        raise UserError("check: name one Python file that registers methods")
    before = set(registry.methods.names())
    registry.load_plugin(Path(arguments[0]))
    names = [n for n in registry.methods.names() if n not in before]
    if not names:
        raise UserError(f"{arguments[0]} registers no method; use @register_method('name')")
    from benchmarks import contract

    failed = 0
    for name in names:
        for title, run in (contract.CHECKS | {"learns": contract.learns}).items():
            try:
                run(name)
                print(f"{name}: {title.replace('_', ' ')}: yes", flush=True)
            except (contract.Broken, UserError) as error:
                failed += 1
                print(f"{name}: {title.replace('_', ' ')}: NO. {error}", flush=True)
            except Exception as error:  # noqa: BLE001 - a method under test may fail in any way
                failed += 1
                reason = f"{type(error).__name__}: {error}"
                print(f"{name}: {title.replace('_', ' ')}: NO. It fails: {reason}", flush=True)
    return 1 if failed else 0


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

    cells = specs(
        configs,
        backbone=options.backbone,
        reward=options.reward,
        task=options.task,
        budget=options.budget,
        seeds=options.seeds,
    )
    _, failed = run_cells(cells, options.out)
    for name, reason in failed.items():
        print(f"{name} failed: {reason}", file=sys.stderr)
    print(write_report(options.out))
    print(f"\nCurves, table and pictures: {options.out}/")
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main(sys.argv[1:]))
