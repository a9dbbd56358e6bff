"""``run_benchmark.py check my_method.py``: does a plugin's method keep the contract, and learn?"""

from __future__ import annotations

from pathlib import Path

from benchmarks import registry
from benchmarks.api import UserError
from benchmarks.conformance import contract, learns


def main(arguments: list[str]) -> int:
    """Run every check on every method a plugin file registers; 1 if one fails."""
    if len(arguments) != 1:
        raise UserError("check: name one Python file that registers methods")
    before = set(registry.methods.names())
    registry.load_plugin(Path(arguments[0]))
    names = [n for n in registry.methods.names() if n not in before]
    if not names:
        raise UserError(f"{arguments[0]} registers no method; use @register_method('name')")
    failed = 0
    for name in names:
        for title, run in (contract.CHECKS | {"learns": learns.learns}).items():
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
