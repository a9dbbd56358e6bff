"""Search hyperparameters: the same number of trials at the same compute for every method.

Writes search.json and search.md beside the trials' cells.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from benchmarks.api import UserError
from benchmarks.cli import LAUNCHING, Launching, cli, load_plugins

if TYPE_CHECKING:
    from benchmarks.experiments.search import Judged


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclass(frozen=True, kw_only=True)
class Options:
    """Which search, and where to."""

    file: tyro.conf.Positional[Path | None] = None
    """A TOML file like benchmarks/experiments/search.toml, which is the default."""
    methods: tuple[str, ...] = ()
    """Only these methods of the file."""
    rewards: tuple[str, ...] = ()
    """These rewards instead of the file's."""
    out: Path = Path("results/search")
    """Where results go; finished trials there are not run again."""
    plugin: tuple[Path, ...] = ()
    """Python files that register what the search names, or hold its rewards. They are run."""
    launching: LAUNCHING = field(default_factory=Launching)
    """Many trials at once."""


def main(arguments: list[str]) -> int:
    """Run what is not finished; once all trials are done, write and print who wins."""
    options: Options = cli(
        Options, args=arguments, prog="run_benchmark.py search", description=__doc__
    )
    load_plugins(options.plugin)
    from benchmarks.distributed import process
    from benchmarks.experiments import search
    from benchmarks.records.cell import write_json

    path = options.file or search.FILE
    wanted = search.narrowed(search.load(path), options.methods, options.rewards)
    found, failed = search.run(wanted, path, options.out, options.launching, options.plugin)
    for name, reason in failed.items():
        print(f"{name} failed: {reason}", file=sys.stderr)
    if found and process() == 0:
        rows = [
            dataclasses.asdict(judged) | {"score": judged.score, "chosen": wins}
            for judged, wins in found
        ]
        text = "\n".join(_lines(found))
        try:
            write_json(options.out / "search.json", rows)
            (options.out / "search.md").unlink(missing_ok=True)  # it may be a link
            (options.out / "search.md").write_text(text + "\n")
        except OSError as error:
            raise UserError(f"--out {options.out}: cannot be written ({error.strerror})") from error
        print(text)
    return 1 if failed else 0


def _lines(found: list[tuple[Judged, bool]]) -> Iterator[str]:
    yield "| reward | method | trial | values | validation reward | per seed | kept | chosen |"
    yield "|---|---|---:|---|---:|---|---:|---|"
    for reward in dict.fromkeys(judged.trial.reward for judged, _ in found):
        rows = [(judged, wins) for judged, wins in found if judged.trial.reward == reward]
        yield f"| {reward} | base model | | | {rows[0][0].base:.4g} | | | |"
        for judged, wins in sorted(
            rows, key=lambda row: (row[0].trial.method, row[0].trial.number)
        ):
            trial = judged.trial
            yield (
                f"| {reward} | {trial.method} | {trial.number} | `{json.dumps(trial.values)}` | "
                f"{judged.score:.4g} | {', '.join(f'{score:.4g}' for score in judged.scores)} | "
                f"{judged.kept:.0%} | {'yes' if wins else ''} |"
            )
