"""The arrows between the rooms of the house, and the rules that can be read off the files."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from benchmarks import registry
from benchmarks.api import Batch

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
#: Shapes that are written down, to be planned with.
KNOW_SHAPES = ("shapes.py",)
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


#: What a reward may use beside its door: the embedded world's networks.
DOORS = {"methods": (), "rewards": ("benchmarks.emoji",)}


@pytest.mark.parametrize("folder", DOORS)
def test_methods_and_rewards_have_one_door(folder: str):
    for path in files(folder):
        if path.name != "__init__.py":
            own = {n for n in imports(path) if n.startswith("benchmarks")}
            wrong = [n for n in own if not n.startswith(DOORS[folder])] if DOORS[folder] else own
            assert not wrong, f"{path.name} imports {wrong}; import it from {folder}"


def strings(path: Path) -> set[str]:
    """String constants of a file, except in defaults and arguments named ``methods``."""
    tree = ast.parse(path.read_text())
    allowed: set[int] = set()
    for node in ast.walk(tree):
        default = None
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            default = node.value if node.target.id == "methods" else None
        elif isinstance(node, ast.FunctionDef):
            names = node.args.args[len(node.args.args) - len(node.args.defaults) :]
            pairs = zip(names, node.args.defaults, strict=True)
            default = next((value for name, value in pairs if name.arg == "methods"), None)
        if default is not None:
            allowed |= {id(inner) for inner in ast.walk(default)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in allowed
    }


def test_no_method_is_named_outside_of_presets_suites_and_speed():
    known = set(registry.methods.names())
    for path in files("benchmarks"):
        if "speed" not in path.parts:
            assert not strings(path) & known, path


def test_no_field_of_a_config_is_read_by_name():
    """Beyond those that ``api.py`` declares."""
    declared = {f.name for f in dataclasses.fields(Batch)}
    configs = [registry.methods.get(name).Config for name in registry.methods.names()]
    own = {f.name for config in configs for f in dataclasses.fields(config)} - declared
    own = {name for name in own if "_" in name}  # others are common words
    assert "samples_per_round" in own
    for room_name in ("compute", "backbone", "forecast", "harness", "conformance", "experiments"):
        for path in files(f"benchmarks/{room_name}"):
            tree = ast.parse(path.read_text())
            read = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
            read |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.keyword) and n.arg}
            assert not (read | strings(path)) & own, path


def test_only_its_own_files_know_a_model_family():
    """Methods, ledger, planner, soups and checks say nothing of Stable Diffusion's parts."""
    words = re.compile(r"unet|u-net|epsilon|v_prediction|stable_?diffusion|encoder_hidden", re.I)
    rooms = ("compute", "forecast", "harness", "conformance", "experiments", "records")
    paths = [p for r in rooms for p in files(f"benchmarks/{r}")]
    for path in [*paths, ROOT / "benchmarks/api.py", ROOT / "benchmarks/backbone/base.py"]:
        if path.name not in KNOW_SHAPES:
            tree = ast.parse(path.read_text())
            names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
            names |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
            assert not [n for n in names if words.search(n)], path


#: A module of more lines than this has a test file of its own, except these.
LONG = 60
UNMIRRORED = ("benchmarks/emoji/", "__init__.py", "__main__.py", "methods/_template.py")


@pytest.mark.parametrize("folder", ["benchmarks", "analysis", "methods", "rewards"])
def test_tests_mirror_the_code(folder: str):
    """A module of more than ``LONG`` lines has a test file of its name; no two have one name."""
    names = [path.name for path in files("tests") if path.name.startswith("test_")]
    assert len(names) == len(set(names))
    for path in files(folder):
        place = path.relative_to(ROOT).as_posix()
        if not (place.startswith(UNMIRRORED) or place.endswith(UNMIRRORED)):
            long = len(path.read_text().splitlines()) > LONG
            wanted = {f"test_{path.name}", f"test_{path.name.lstrip('_')}"}
            assert not long or wanted & set(names), f"{place} has no test_{path.name}"
