"""Names come through three doors, are never overwritten, and a broken plugin harms nobody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import run_benchmark
from benchmarks import registry
from benchmarks.api import UserError

PACKAGE = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "third-party"
version = "1"
[project.entry-points."alignprop_bench.methods"]
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


def test_an_installed_package_adds_a_method(tiny_folder: Path, tmp_path: Path):
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name, text in PACKAGE.items():
        (source / name).write_text(text)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--no-index", "--target", str(site), str(source)], check=True)
    root = Path(run_benchmark.__file__).parent
    environment = os.environ | {"PYTHONPATH": str(site)}

    def command(*arguments: str) -> str:
        line = [sys.executable, "run_benchmark.py", *arguments]
        done = subprocess.run(line, cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = command("--list", "methods")
    assert "A method from another package. [theirs]" in listed
    assert "broken: broken (broken_plugin): ImportError: its library is missing" in listed
    out = tmp_path / "runs"
    few = ["--backbone", str(tiny_folder), "--task", str(tiny_folder / "few.toml")]
    small = ["--theirs.batch-size", "2", "--budget", "steps=1"]
    assert "theirs" in command("--methods", "theirs", *few, *small, "--out", str(out))


def test_a_name_is_never_overwritten():
    registry.methods.load()
    with pytest.raises(UserError, match=r"already registered by methods\.ddpo"):
        registry.register_method("ddpo")(type("Other", (), {}))
    with pytest.raises(UserError, match="already registered"):
        registry.method_variant("ddpo-sf", "ddpo")


def test_a_variant_sets_what_its_name_says():
    from benchmarks.config import load_preset, method_defaults

    preset = load_preset("emoji")
    base = method_defaults("alignprop", preset)
    full = method_defaults("alignprop-full", preset)
    assert full.truncation.mode == "full" and base.truncation.mode == "per_trajectory"
    assert full.batch_size == base.batch_size == preset["alignprop"]["batch_size"]
    assert method_defaults("ddpo-sf", preset).clip is None


@pytest.mark.parametrize("text", ["syntax error(", "import no_such_module", "1 / 0"])
def test_a_plugin_that_fails_is_one_clear_line(text: str, tmp_path: Path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert run_benchmark.main(["--plugin", str(path), "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert str(path) in captured.err and captured.err.count("\n") == 1
