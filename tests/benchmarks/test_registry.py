"""Names come through three doors, are never overwritten, and a broken plugin harms nobody."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import run_benchmark
from benchmarks import registry
from benchmarks.api import Method, Preset, UserError
from benchmarks.backbone import load as load_model
from benchmarks.compute.ledger import Ledger
from benchmarks.config import load_preset
from methods.refl import ReFL

ROOT = Path(run_benchmark.__file__).parent

PACKAGE = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "third-party"
version = "1"
[project.entry-points."alignprop_bench.plugins"]
theirs = "theirs"
broken = "broken_plugin"
[tool.setuptools]
py-modules = ["theirs", "broken_plugin"]
""",
    "theirs.py": """
from methods import register_method
from methods.refl import ReFL

@register_method("theirs")
class Theirs(ReFL):
    "A method from another package."
""",
    "broken_plugin.py": "raise ImportError('its library is missing')\n",
}


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``run_benchmark.py`` in a process of its own."""
    line = [sys.executable, "run_benchmark.py", *arguments]
    variables = os.environ | environment
    return subprocess.run(line, cwd=ROOT, env=variables, capture_output=True, text=True)


def test_an_installed_package_adds_a_method(tiny_folder: Path, tmp_path: Path):
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name, text in PACKAGE.items():
        (source / name).write_text(text)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--no-index", "--target", str(site), str(source)], check=True)
    listed = command("--list", "methods", PYTHONPATH=str(site)).stdout
    assert "A method from another package. [third-party 1]" in listed
    assert "broken: third-party 1 (broken_plugin): ImportError: its library is missing" in listed
    out = tmp_path / "runs"
    few = ["--backbone", str(tiny_folder / "quick.toml"), "--task", str(tiny_folder / "few.toml")]
    small = ["--theirs.batch-size", "2", "--budget", "steps=1"]
    done = command("--methods", "theirs", *few, *small, "--out", str(out), PYTHONPATH=str(site))
    assert done.returncode == 0 and "theirs" in done.stdout, done.stderr


PLUGIN = """
from pathlib import Path
from benchmarks.api import Preset, Task
from benchmarks.registry import method_variant, register_backbone, register_reward, register_task
from rewards import Reward

method_variant("my-refl", "refl", batch_size=2)

@register_reward("blueness")
class Blueness(Reward):
    "How blue a picture is."
    unit, reference, differentiable = "of the pixel range", "ours", True
    def __init__(self, device): pass
    def __call__(self, images, prompts): return images[:, 2].mean((1, 2))

@register_backbone("small")
def small():
    "A small model."
    return Path(__file__).with_name("small.toml")

@register_task("few")
def few():
    "Few prompts."
    return Task(name="few", train=("cat",), unseen=("snail",), held_out=(), train_every=1,
                train_images=1, unseen_images=1)
"""


def test_one_file_adds_a_thing_of_every_kind(
    tiny_folder: Path, tmp_path: Path, fresh_registry, capsys
):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    (tmp_path / "small.toml").write_text(f'model = "{tiny_folder}"\nlike = "emoji"\n')
    assert run_benchmark.main(["--list", "--plugin", str(path)]) == 0
    listed = capsys.readouterr().out
    for name, about in {
        "my-refl": "refl with batch_size=2",
        "blueness": "How blue a picture is. (of the pixel range; differentiable)",
        "small": "A small model.",
        "few": "Few prompts.",
    }.items():
        assert f"  {name:24} {about} [{path}]" in listed.splitlines()
    arguments = ["--methods", "my-refl", "--reward", "blueness", "--backbone", "small"]
    arguments += ["--task", "few", "--budget", "steps=1", "--out", str(tmp_path / "runs")]
    assert run_benchmark.main(arguments) == 0
    (cell,) = (tmp_path / "runs").glob("my-refl-blueness-*")
    assert json.loads((cell / "steps.jsonl").read_text())["reward_queries"] == 2


def test_a_function_may_load_the_model(fresh_registry):
    class NotAPipeline(Exception):
        pass

    def load():
        raise NotAPipeline

    @registry.register_backbone("own")
    def own() -> Preset:
        return dataclasses.replace(load_preset("emoji"), name="own", model=load)

    with pytest.raises(NotAPipeline):
        load_model("own", Ledger())


@pytest.mark.parametrize(("kind", "name"), [("methods", "ddpo-sf"), ("rewards", "jpeg")])
def test_a_name_is_never_overwritten(kind: str, name: str, fresh_registry):
    known = registry.KINDS[kind]
    before = known.get(name)
    with pytest.raises(UserError, match=r"already registered by (methods\.ddpo|rewards\.jpeg)"):
        known.register(name)(type("Other", (), {}))
    assert known.get(name) is before
    with pytest.raises(UserError, match=r"already registered by benchmarks/tasks/animals\.toml"):
        registry.register_task("animals")(lambda: Path("mine.toml"))


def test_a_plugin_cannot_take_a_name_that_was_not_imported_yet(tmp_path: Path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from methods import register_method\n@register_method('ddpo')\nclass Mine: pass\n"
    )
    done = command("--plugin", str(plugin), "--methods", "alignprop", "--help")
    assert done.returncode == 2
    assert "method 'ddpo'" in done.stderr and "already registered by methods.ddpo" in done.stderr


def test_a_broken_plugin_is_listed_and_harms_nobody(tmp_path: Path):
    plugin = tmp_path / "mine.py"
    plugin.write_text("import no_such_module\n")
    done = command("--list", "methods", "--plugin", str(plugin))
    assert done.returncode == 0 and "  ddpo " in done.stdout
    assert (
        f"broken: --plugin {plugin}: ModuleNotFoundError: No module named 'no_such_m" in done.stdout
    )


def test_the_list_imports_nothing_heavy():
    code = (
        "import sys, run_benchmark\nrun_benchmark.main(['--list'])\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'pandas')))\n"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
    )


@pytest.mark.parametrize("known", [registry.methods, registry.rewards], ids=["methods", "rewards"])
def test_names_read_without_importing_are_the_registered_ones(known: registry.Registry):
    read = set(known.names())
    for path in known.folder.glob("[!_]*.py"):
        importlib.import_module(f"{known.folder.name}.{path.stem}")
    assert read | set(known.patterns()) == set(known.entries)
    assert all(known.summaries[name] for name in read)


@pytest.mark.parametrize(
    "text", ["syntax error(", "import no_such_module", "1 / 0", "import sys; sys.exit(0)"]
)
def test_a_plugin_that_fails_is_one_clear_line(text: str, tmp_path: Path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert run_benchmark.main(["--plugin", str(path), "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert str(path) in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["a.b", "1abc", "class", "../../evil/x", "<script>", "options", "", "re-fl ", "rwr_set"]
)
def test_what_cannot_be_the_name_of_a_method_is_refused(name: str, fresh_registry):
    with pytest.raises(UserError, match=f"method {name!r} from "):
        registry.register_method(name)(ReFL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bare:
    size: int


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (lambda: None, "must be a class that derives from Method"),
        (int, "must be a class that derives from Method"),
        (type("NoStep", (Method,), {}), "does not define __init__, load_state_dict, state_dict"),
        (type("NoConfig", (ReFL,), {"Config": None}), "Config must be a dataclass"),
        (type("BareConfig", (ReFL,), {"Config": Bare}), "needs a default; size has none"),
        (type("NoNeeds", (ReFL,), {"needs": "reward"}), "its needs must be"),
    ],
)
def test_what_cannot_be_a_method_is_refused(thing: object, message: str, fresh_registry):
    with pytest.raises(UserError, match=message):
        registry.register_method("mine")(thing)


def test_what_cannot_be_another_thing_is_refused(fresh_registry):
    with pytest.raises(UserError, match="derives from Reward"):
        registry.register_reward("mine")(lambda images, prompts: 0)
    with pytest.raises(UserError, match=r"must be a function, not \'here\'"):
        registry.register_task("mine")("here")
    with pytest.raises(UserError, match=r"a method needs a name: @register_method"):
        registry.register_method(ReFL)(ReFL)
