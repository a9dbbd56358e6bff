"""Check whether a plugin's methods keep the contract, and learn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks import registry
from benchmarks.api import UserError
from benchmarks.cli import cli


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to check."""

    file: tyro.conf.Positional[Path]
    """A Python file that registers methods. It is run."""


def main(arguments: list[str]) -> int:
    """Run every check on every method a plugin file registers; 1 if one fails."""
    options: Options = cli(
        Options, args=arguments, prog="run_benchmark.py check", description=__doc__
    )
    from benchmarks.conformance import contract, learns

    before = set(registry.methods.names())
    registry.load_plugin(options.file)
    names = [n for n in registry.methods.names() if n not in before]
    if not names:
        raise UserError(f"{options.file} registers no method; use @register_method('name')")
    failed = 0
    for name in names:
        for title, run in (contract.CHECKS | {"learns": learns.learns}).items():
            try:
                run(name)
                print(f"{name}: {title.replace('_', ' ')}: yes", flush=True)
            except (contract.Broken, UserError) as error:
                failed += 1
                print(f"{name}: {title.replace('_', ' ')}: NO. {error}", flush=True)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - it may fail in any way
                failed += 1
                reason = f"{type(error).__name__}: {error}"
                print(f"{name}: {title.replace('_', ' ')}: NO. It fails: {reason}", flush=True)
    return 1 if failed else 0
