"""From a choice of methods to finished cells."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.api import Task, UserError
from benchmarks.backbone import default_precision
from benchmarks.compute.budget import Budget, fractions
from benchmarks.config import KeepChoice, Layer, Precision, load_preset, load_task, method_config
from benchmarks.distributed import leave, processes
from benchmarks.harness.guard import NotFinite
from benchmarks.harness.loop import Harness
from benchmarks.harness.progress import bar
from benchmarks.harness.spec import Spec
from benchmarks.records import tracking
from benchmarks.records.cell import Cell
from benchmarks.records.state import DAMAGED, read_lines

#: What ``torch.compile`` calls on a CPU; for a GPU it needs one of them too.
COMPILERS = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]


def has_compiler() -> bool:
    """Whether ``torch.compile`` can work here."""
    return any(map(shutil.which, COMPILERS))


def resolve(
    methods: Mapping[str, Sequence[Layer]],
    *,
    backbone: str = "emoji",
    reward: str = "jpeg",
    task: str | Task | None = None,
    held_out: Sequence[str] | None = None,
    budget: str | None = None,
    seeds: Sequence[int] = (0,),
    precision: Precision | None = None,
    keep: KeepChoice = "auto",
    compile: bool = False,
    rank: int = 4,
    placebo: bool = False,
    budget_factor: float = 1.0,
    given: Mapping[str, str] | None = None,
    named: Iterable[str] | None = None,
) -> list[Spec]:
    """One cell per method and seed, with every value and where it comes from.

    ``methods`` has, per method, what goes over its preset, lowest first. ``given`` says where those
    of the other arguments come from that somebody chose; the rest is the preset's (``task``,
    ``budget``), the task's (``held_out``), the device's (``precision``) or the default. ``named``
    are the code files that the user named, by default in ``reward`` and ``held_out``. With
    ``placebo`` the methods are paid without meaning. A ``budget_factor`` above 1 gives them so many
    times the budget, and evaluations at the shares of one budget and then at its doublings, so that
    costs are the same as those of cells with a factor of 1. The command line, Python, suites and
    searches all come here.

    Raises UserError for what cannot work, before anything is computed.
    """
    if compile and not has_compiler():
        raise UserError(
            f"--compile: torch.compile needs a compiler, {' or '.join(COMPILERS)}, and there is "
            "none; install one, or leave --compile out"
        )
    preset = load_preset(backbone)
    prompts = load_task(task or preset.task) if not isinstance(task, Task) else task
    if held_out is not None:
        prompts = dataclasses.replace(prompts, held_out=tuple(held_out))
    whose = f"preset {preset.name}"
    sources = dict.fromkeys(("backbone", "reward", "seed", "keep", "compile", "rank"), "default")
    sources |= dict.fromkeys(("task", "budget", "evaluation"), whose)
    sources |= {"held_out": f"task {prompts.name}", "precision": "device"}
    sources |= {"seed" if key == "seeds" else key: where for key, where in (given or {}).items()}
    own_budget = Budget.parse(budget or preset.budget).times(budget_factor)
    cells = []
    configs = {name: method_config(name, preset, *layers) for name, layers in methods.items()}
    for seed in seeds:
        for name, (config, own) in configs.items():
            values = {
                "method": name,
                "config": config,
                "task": prompts,
                "reward": reward,
                "backbone": backbone,
                "seed": seed,
                "budget": own_budget,
                "evaluation": preset.evaluation,
                "rank": rank,
                "precision": precision or default_precision(),
                "keep": keep,
                "compile": compile,
                "placebo": placebo,
                "evaluate_at": fractions(budget_factor),
                "sources": sources | {f"config.{key}": where for key, where in own.items()},
            }
            cells.append(Spec.made(values, f"{name}, seed {seed}"))
    if not cells:
        raise UserError("there is nothing to run: name at least one method and one seed")
    user = (reward, *(held_out or ())) if named is None else named
    refuse_code(code_files(cells), user, f"task {prompts.name}")
    for spec in cells:
        spec.description()  # raises for rewards and methods that do not go together
    return cells


def code_files(specs: Iterable[Spec]) -> list[str]:
    """The rewards of these cells that are functions of Python files, as ``my_file.py:score``."""
    names = set()
    for spec in specs:
        names |= {spec.reward, *spec.task.held_out, spec.evaluation.features}
    return sorted(name for name in names if _files(name))


def _files(reward: str) -> list[Path]:
    """The Python files in a reward's name, which may be a mixture."""
    return [Path(file).resolve() for file in re.findall(r"([^*+]+\.py):", reward)]


def refuse_code(rewards: Iterable[str], named: Iterable[str], where: str) -> None:
    """Raises UserError if a reward is a function of a file that nobody ``named``.

    Files that were sent by somebody may name rewards; what they name is run only if the command
    line says so as well.
    """
    known = {file for name in named for file in _files(name) or [Path(name).resolve()]}
    for reward in rewards:
        if set(_files(reward)) - known:
            (file, *_) = _files(reward)
            raise UserError(
                f"{where}: the reward {reward} is code; if you trust it, name its file on this "
                f"command line: --plugin {file}"
            )


def announce(cells: Sequence[Spec], out: Path) -> None:
    """Write the file of each cell that is not begun, so that it can be run from there.

    What is wrong with the directory of one cell is said when that cell is run. Raises UserError if
    ``out`` cannot be written.
    """
    for spec in cells:
        cell = Cell(out, spec.description(), {"sources": dict(spec.sources)})
        try:
            cell.announce()
        except (OSError, UserError) as error:
            if not cell.path.is_dir():
                reason = getattr(error, "strerror", None) or error
                raise UserError(f"--out {out}: cannot be written ({reason})") from error


def run_cells(
    cells: Sequence[Spec], out: Path, track: tracking.Name | None = None
) -> tuple[list[Path], dict[str, str]]:
    """Run what is not finished yet: the finished cells' directories, and why others failed.

    What failed before comes last. If one of several processes fails alone, the others wait for it
    in vain, so the run ends; the same command goes on with the other cells. Raises UserError if
    all cells refuse for the same reason.
    """
    harness = Harness(out, track=track)
    done = list[Path]()
    failed = dict[str, BaseException]()
    alike = len({(spec.method, spec.seed) for spec in cells}) < len(cells)  # by these alone
    for spec in sorted(cells, key=lambda spec: Cell(out, spec.description()).failed):
        name = f"{spec.method}, seed {spec.seed}"
        if alike:
            name = Cell(out, spec.description()).path.name
        with bar(name) as progress:
            try:
                done.append(harness.run(spec, progress))
            except (Exception, SystemExit) as error:  # noqa: BLE001 - others go on
                if processes() > 1 and not isinstance(error, UserError | NotFinite):
                    leave(f"{name} failed: {error}")
                failed[name] = error
    if len(failed) == len(cells) and len({repr(error) for error in failed.values()}) == 1:
        reason = next(iter(failed.values()))
        if isinstance(reason, UserError):
            raise reason
    return done, {name: _line(error) for name, error in failed.items()}


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    return lines[0] if lines else type(error).__name__


def run(
    methods: Sequence[str] = ("alignprop", "ddpo"),
    *,
    out: str | Path = "runs",
    config: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Compare ``methods`` and return their evaluations.

    ``config`` has values per method, nested like the TOML file; ``options`` are those of
    ``resolve``. One row per cell, split and share of the budget: method, seed, split, fraction,
    step, the ledger's counters, diversity and a column per reported reward. Raises UserError for
    bad input and RuntimeError if a cell fails.
    """
    if isinstance(methods, str):
        raise UserError(f"methods must be a list: methods=[{methods!r}]")
    if multiprocessing.current_process().name == "function reward":  # whose file is this script
        raise UserError("put the call of benchmarks.run under: if __name__ == '__main__'")
    own = config or {}
    unknown = set(own) - set(methods)
    if unknown:
        raise UserError(f"config has values for {', '.join(unknown)}, not among the methods")
    layers = {name: [(own.get(name, {}), f"config[{name!r}]")] for name in methods}
    cells = resolve(layers, **options, given=dict.fromkeys(options, "benchmarks.run"))
    announce(cells, Path(out))
    done, failed = run_cells(cells, Path(out))
    if failed:
        raise RuntimeError("; ".join(f"{name}: {reason}" for name, reason in failed.items()))
    rows = []
    for cell in done:
        try:
            head = json.loads((cell / "cell.json").read_text())
            for record in read_lines(cell / "evals.jsonl"):
                record.pop("per_image")
                own = {k: head[k] for k in ("method", "seed")}
                rows.append(own | record | record.pop("rewards"))
        except DAMAGED as error:
            raise UserError(f"{cell}: its records are damaged ({error}); remove it") from error
    return pd.DataFrame(rows)
