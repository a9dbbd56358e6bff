"""The arrows between the rooms of the house."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def imports(path: Path) -> set[str]:
    """Every module a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("methods", ("benchmarks.harness", "benchmarks.store", "benchmarks.evaluate", "rewards")),
        ("rewards", ("benchmarks.harness", "benchmarks.store", "benchmarks.evaluate", "methods")),
        ("benchmarks", ("methods", "rewards", "analysis")),
        ("analysis", ("methods", "rewards", "benchmarks", "torch")),
    ],
)
def test_rooms_do_not_import_what_they_must_not(room: str, forbidden: tuple[str, ...]):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            wrong = [f for f in forbidden if name == f or name.startswith(f + ".")]
            assert not wrong, f"{path.relative_to(ROOT)} imports {name}"
