"""The arrows between the rooms of the house, and the rules that can be read off the files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: The rooms of ``benchmarks/``, lowest first. A file imports from its own room and from those
#: below. Rooms of one tuple stand side by side and do not know each other.
FLOORS = (
    ("benchmarks",),  # the ground floor: the files that stand in no room, and the data folders
    ("compute",),
    ("records",),
    ("backbone",),
    ("forecast",),
    ("harness",),
    ("conformance", "emoji", "experiments"),
    ("commands", "speed"),
)
DATA = ("presets", "tasks")
#: What methods and rewards may not know.
INNER = ("harness", "records", "forecast", "conformance", "experiments", "commands", "speed")


def imports(path: Path) -> set[str]:
    """Every module a file imports, anywhere in it; with what is taken from a package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room(name: str) -> str:
    """The room of ``benchmarks`` that a module or a path belongs to."""
    parts = name.split(".")
    rooms = {r for floor in FLOORS for r in floor}
    return parts[1] if len(parts) > 1 and parts[1] in rooms else "benchmarks"


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


def test_every_folder_is_a_room():
    folders = {p.name for p in (ROOT / "benchmarks").iterdir() if p.is_dir() and p.name[0] != "_"}
    assert folders == {r for floor in FLOORS for r in floor} - {"benchmarks"} | set(DATA)


def test_arrows_run_down_only():
    floor = {r: i for i, rooms in enumerate(FLOORS) for r in rooms}
    facade = ROOT / "benchmarks/__init__.py"  # ``benchmarks.run`` hands over when it is called
    for path in set(files("benchmarks")) - {facade}:
        own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for name in sorted(n for n in imports(path) if n.startswith("benchmarks.")):
            other = room(name)
            assert other == own or floor[other] < floor[own], (
                f"{path.relative_to(ROOT)} ({own}) imports {name} ({other})"
            )


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("methods", ("rewards", *(f"benchmarks.{r}" for r in INNER))),
        ("rewards", ("methods", *(f"benchmarks.{r}" for r in INNER))),
        ("benchmarks", ("methods", "rewards", "run_benchmark", "unittest")),
        ("analysis", ("methods", "rewards", "benchmarks", "torch", "run_benchmark")),
    ],
)
def test_folders_do_not_import_what_they_must_not(folder: str, forbidden: tuple[str, ...]):
    for path in files(folder):
        for name in imports(path):
            wrong = [f for f in forbidden if name == f or name.startswith(f + ".")]
            assert not wrong, f"{path.relative_to(ROOT)} imports {name}"
