"""Cells are resolved once: the recorded ones keep their names, sources are complete."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import run_benchmark
from benchmarks import config
from benchmarks.api import UserError
from benchmarks.experiments import suite
from benchmarks.experiments.cells import announce, code_files, refuse_code, resolve
from benchmarks.experiments.requests import Chosen
from benchmarks.harness import spec as spec_module
from benchmarks.harness.spec import Spec
from benchmarks.records.cell import Cell
from benchmarks.records.state import collect

ROOT = Path(run_benchmark.__file__).parent
RECORDED = sorted(ROOT.glob("results/*/runs/*/cell.json"))
#: In a ``cell.json`` and no part of the cell's identity.
BESIDE = ("sources", "device", "processes", "threads", "python", "git")


def recorded(path: Path) -> dict[str, Any]:
    """What the hash was made of."""
    record = json.loads(path.read_text())
    return {key: value for key, value in record.items() if key not in BESIDE}


def test_there_are_recorded_cells():
    assert len(RECORDED) >= 95


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.parent.name)
def test_a_recorded_cell_has_the_name_of_its_content(path: Path, monkeypatch):
    """Those of these rules are read back to it; those of older rules are refused."""
    record = recorded(path)
    assert Cell(path.parent.parent, record).path == path.parent
    there(record, monkeypatch)
    if record["rules"] != config.RULES:
        with pytest.raises(UserError, match=f"rules version {record['rules']}, here it is"):
            Spec.read(path)
        return
    assert Cell(path.parent.parent, Spec.read(path).description()).path == path.parent


def there(record: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the versions and the machine of the record."""
    monkeypatch.setattr(spec_module, "version", record["versions"].__getitem__)
    monkeypatch.setattr(platform, "machine", lambda: record["machine"])


def test_every_cell_of_the_suite_survives_its_file(tmp_path: Path):
    """From the suite to a Spec, to its file, to a Spec that has the same directory."""
    specs = {
        Cell(tmp_path, spec.description()).path: spec
        for loaded in suite.load(Chosen(suite="paper"))
        for spec in loaded.cells("emoji").values()
    }
    announce(list(specs.values()), tmp_path)
    assert len(specs) >= 95
    for path, spec in specs.items():
        again = Spec.read(path / "cell.json")
        assert Cell(tmp_path, again.description()).path == path
        assert again.config == spec.config and again.task == spec.task


def test_every_value_has_a_source():
    (spec,) = resolve({"refl": [({"batch_size": 2}, "mine")]}, given={"seeds": "command line"})
    values = {f"config.{key}" for key in config.flat(spec.description()["config"])}
    assert values | {
        *("backbone", "reward", "seed", "keep", "compile", "rank", "task", "budget"),
        *("evaluation", "held_out", "precision"),
    } == set(spec.sources)
    assert spec.sources["config.batch_size"] == "mine"
    assert spec.sources["seed"] == "command line" and spec.sources["reward"] == "default"
    assert spec.sources["budget"] == "preset emoji"
    assert spec.sources["held_out"] == "task animals-on-blue"


def test_sources_do_not_change_the_cell(tmp_path: Path):
    """A value is the same cell whether a file, the preset or the command line says it."""
    (plain,) = resolve({"refl": []})
    (told,) = resolve({"refl": [({}, "mine")]}, given={"reward": "command line"})
    assert plain.sources != told.sources
    assert len({Cell(tmp_path, s.description()).path for s in (plain, told)}) == 1


def test_an_announced_cell_is_missing_until_it_begins(tmp_path: Path):
    cells = resolve({"refl": []}, seeds=[0, 1])
    announce(cells, tmp_path)
    assert {state for state, _ in collect([tmp_path]).values()} == {"missing"}
    first = Cell(tmp_path, cells[0].description())
    with first.claimed():
        first.begin()
        first.append("steps", {"step": 1, "flops": 1.0})
        file = first.path / "cell.json"
        before = file.read_text()
        announce(cells, tmp_path)  # by a second command
        assert file.read_text() == before


@pytest.mark.parametrize(
    ("reward", "named", "refused"),
    [
        ("jpeg", [], False),
        ("mine.py:score", [], True),
        ("mine.py:score", ["mine.py:score"], False),
        ("mine.py:score", ["mine.py"], False),
        ("mine.py:score", ["other.py:score"], True),
        ("0.5*jpeg+0.5*mine.py:score", [], True),
        ("0.5*jpeg+0.5*mine.py:score", ["mine.py:score"], False),
        ("mine.py:score+theirs.py:score", ["mine.py:score"], True),
    ],
)
def test_code_is_named_by_the_user_or_refused(reward: str, named: list[str], refused: bool):
    if refused:
        with pytest.raises(UserError, match="--plugin"):
            refuse_code([reward], named, "x")
    else:
        refuse_code([reward], named, "x")


def test_a_backbone_file_cannot_bring_code(tmp_path: Path):
    code = tmp_path / "theirs.py"
    code.write_text("def score(images, prompts):\n    return []\n")
    mine = tmp_path / "mine.toml"
    features = f'[evaluation]\nfeatures = "{code}:score"\n'
    mine.write_text(f'model = "someone/a-model"\nlike = "emoji"\n{features}')
    with pytest.raises(UserError, match="--plugin"):
        resolve({"ddpo": []}, backbone=str(mine))


def test_a_tasks_file_cannot_bring_code(tmp_path: Path):
    code, task = tmp_path / "theirs.py", tmp_path / "theirs.toml"
    code.write_text("raise SystemExit\ndef score(images, prompts):\n    return []\n")
    task.write_text(
        f'train = "animals"\nunseen = "animals"\nheld_out = ["{code}:score"]\n'
        "[evaluation]\ntrain_every = 1\ntrain_images = 1\nunseen_images = 1\n"
    )
    with pytest.raises(UserError, match=r"task theirs: the reward .* is code"):
        resolve({"ddpo": []}, task=str(task))
    (spec,) = resolve({"ddpo": []}, task=str(task), named=[str(code)])
    assert code_files([spec]) == [f"{code}:score"]
