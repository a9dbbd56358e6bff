"""Every page of the documentation is followed from top to bottom, on a tiny model.

A block whose first line names a file is written to it, a ``diff`` block is applied, Python is run,
and so is every command. By default comparisons, plans and evaluations are run on the tutorial and
parsed elsewhere; the slow mark runs them all. Commands for pytest are what the continuous
integration runs.
"""

import dataclasses
import glob
import importlib.util
import os
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

import benchmarks
import run_benchmark
from analysis.claims import MEASURES
from analysis.figures import FIGURES, TABLES
from benchmarks import registry
from benchmarks.cli import cli
from benchmarks.commands import evaluate, plan, select
from benchmarks.commands import run as running
from benchmarks.commands import suite as suites
from benchmarks.conformance import learns
from benchmarks.experiments import suite
from benchmarks.experiments.requests import Chosen

ROOT = Path(run_benchmark.__file__).parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("[!.]*/README.md")]
PAGES += [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/how-to/*.md"), *ROOT.glob("benchmarks/*.md")]
PAGES = sorted({page.relative_to(ROOT).as_posix() for page in PAGES})
TUTORIAL = "docs/tutorial.md"
#: Backbones that the tiny model stands for.
LARGE = ("sd15", "sdxl", "sd35-medium", "flux-dev")


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    lines = [line.split("  #")[0] for line in text.splitlines() if "python" in line]
    return [shlex.split(os.path.expandvars(line.split("&&")[-1])) for line in lines]


def expanded(words: list[str]) -> list[str]:
    """What a shell makes of ``*``."""
    return [place for word in words for place in (sorted(glob.glob(word)) or [word])]


def tiny(arguments: list[str], folder: Path) -> list[str]:
    """A comparison made small: the tiny model, few prompts, one seed, one optimizer step."""
    groups: dict[str, list[str]] = {}
    for word in arguments:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            groups[name] = [value] if value else []
        else:
            groups[list(groups)[-1]].append(word)
    if groups.get("--backbone", ["sd15"])[0] in LARGE:
        groups["--backbone"] = [str(folder / "quick.toml")]
    groups.setdefault("--task", [str(folder / "few.toml")])
    groups |= {"--budget": ["steps=1"], "--seeds": ["0"]}
    for launching in ("--launch", "--jobs", "--partition"):  # here instead
        groups.pop(launching, None)
    return [word for name, values in groups.items() for word in (name, *values)]


def command(words: list[str], folder: Path, compare: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert words[0].endswith("python"), words
    if "accelerate.commands.launch" in words:  # one process does what several do
        words = [words[0], *words[words.index("run_benchmark.py") :]]
    program, arguments = words[1], expanded(words[2:])
    if program == "-m":
        assert arguments[0] in ("pytest", "venv", "pip") or importlib.util.find_spec(arguments[0])
        if arguments[0] == "pytest":
            assert all(Path(ROOT, a).exists() for a in arguments[1:] if a.startswith("tests"))
        if arguments[0] == "analysis" and Path(arguments[1]).exists():
            monkeypatch.setattr(sys, "argv", arguments)
            with pytest.raises(SystemExit) as stop:
                runpy.run_module("analysis", run_name="__main__")
            assert not stop.value.code
        return
    assert program == "run_benchmark.py"
    if "--help" in arguments:
        with pytest.raises(SystemExit) as stop:
            run_benchmark.main(arguments)
        assert not stop.value.code
        return
    verb, rest = run_benchmark.split(arguments)
    if verb == "plan":
        assert cli(plan.Options, args=rest)
        if compare:
            small = [str(folder) if word in LARGE else word for word in rest]
            assert run_benchmark.main(["plan", *small]) == 0
    elif verb == "evaluate" and not compare:
        assert evaluate.parse(rest).checkpoints
    elif verb == "select":
        assert select.parse(rest).selections
    elif verb == "suite":
        options = suites.parse(rest)
        assert suite.load(Chosen(suite=options.suite, backbone=options.backbone))
    elif verb in ("status", "report") and not Path(rest[0]).exists():
        return  # of runs from another page
    elif verb == "search":
        return
    elif verb == "run" and not rest[0].startswith("-"):
        assert not compare or run_benchmark.main(arguments) == 0
    elif verb == "run" and compare:
        assert run_benchmark.main(tiny(rest, folder)) == 0
    elif verb == "run":
        running.parse(rest)
        forget_plugins()
        running.parse(tiny(rest, folder))
    else:
        assert run_benchmark.main(arguments) == 0


def follow(page: str, folder: Path, compare: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what the page says, in the current directory."""
    for language, text in blocks(page):
        first = text.split("\n")[0]
        if re.fullmatch(r"# [\w/-]+\.\w+", first):
            Path(first[2:]).parent.mkdir(exist_ok=True)
            Path(first[2:]).write_text(text)
        elif language == "diff":
            _, *lines = text.splitlines()
            old, new = (
                "".join(f"{line[1:]}\n" for line in lines if line[0] in kept)
                for kept in ("- ", "+ ")
            )
            path = Path(first.removeprefix("--- "))
            assert path.read_text().count(old) == 1
            path.write_text(path.read_text().replace(old, new))
        elif language == "python" and compare:
            exec(compile(text, page, "exec"), {})
        elif language == "python":
            compile(text, page, "exec")
        elif language == "":
            for words in commands(text):
                forget_plugins()
                command(words, folder, compare, monkeypatch)


def forget_plugins() -> None:
    """Each command is a process of its own: what plugins registered is gone in the next."""
    for known in registry.KINDS.values():
        for name, origin in known.origins.items():
            if origin.startswith("plugins/"):
                known.entries.pop(name, None)


@pytest.fixture
def place(
    fresh_registry: None,
    tiny_contract: None,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A current directory with the model that the pages speak of; the tiny model's folder."""
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "my-model").symlink_to(tiny_folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    monkeypatch.setattr(learns, "TRIAL", learns.Trial(flops=2e8))
    real = benchmarks.run

    def small(methods, **options):
        few = str(tiny_folder / "few.toml")
        quick = str(tiny_folder / "quick.toml")
        small = {"backbone": quick, "task": few, "budget": "steps=1"}
        return real(methods, **(options | small))

    monkeypatch.setattr(benchmarks, "run", small)
    return tiny_folder


def test_there_are_commands():
    assert sum(len(commands(text)) for page in PAGES for _, text in blocks(page)) >= 25


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, place: Path, monkeypatch: pytest.MonkeyPatch):
    follow(page, place, page == TUTORIAL, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != TUTORIAL])
def test_page_with_its_comparisons(page: str, place: Path, monkeypatch: pytest.MonkeyPatch):
    follow(page, place, True, monkeypatch)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", (ROOT / page).read_text()):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"]({name})" in index, name
    assert "](docs/README.md)" in (ROOT / "README.md").read_text()


def test_the_page_of_suites_names_every_key_figure_table_and_measure():
    text = (ROOT / "docs" / "how-to" / "suites.md").read_text()
    classes = (suite.Item, suite.Arm, suite.Further, suite.Claim)
    names = [field.name for cls in classes for field in dataclasses.fields(cls)]
    names += [name for name, entry in FIGURES.items() if entry.of != "speed"]
    assert not [name for name in [*names, *TABLES, *MEASURES] if f"`{name}`" not in text]
