"""A cell as data: it is read back from its file as it was, and damaged files are refused."""

import json
from pathlib import Path

import pytest

from benchmarks.api import UserError
from benchmarks.experiments.cells import announce, resolve
from benchmarks.harness.spec import Spec


def test_an_announced_cell_is_read_back_as_it_was(tiny_folder: Path, tmp_path: Path):
    given = {"backbone": str(tiny_folder), "task": str(tiny_folder / "few.toml")}
    cells = resolve({"alignprop-k1": [], "ddpo": [], "rwr": [], "refl": []}, **given)
    announce(cells, tmp_path)
    found = [Spec.read(path) for path in tmp_path.glob("*/cell.json")]
    assert sorted(found, key=lambda s: s.method) == sorted(cells, key=lambda s: s.method)


def test_what_a_file_leaves_out_is_the_default(tmp_path: Path):
    """Files of before a field existed."""
    (spec,) = resolve({"refl": []})
    record = json.loads(json.dumps(spec.description()))
    del record["config"]["margin"], record["rank"]
    assert "sources" not in record and "compile" not in record
    found = Spec.from_record(record, "x")
    assert (found.rank, found.compile, found.config) == (4, False, spec.config)


def test_compiled_cells_are_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.experiments.cells.has_compiler", lambda: True)
    (plain,), (compiled,) = resolve({"refl": []}), resolve({"refl": []}, compile=True)
    assert plain.description() | {"compile": True} == compiled.description()
    assert Spec.from_record(compiled.description(), "x").compile


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "a"}, "x: seed must be int, not 'a'"),
        ({"prompts": 3}, "x: task must be a table, not 3"),
        ({"config": {"batch_sise": 3}}, "x: config: unknown key 'batch_sise'; did you mean"),
        ({"config": 3}, "x: config must be a table, not 3"),
        ({"method": "refk"}, "unknown method 'refk'; did you mean 'refl'"),
        ({"budget": {"kind": "steps"}}, "x.budget: missing amount"),
        ({"evaluation": {"features": 3}}, "x.evaluation: features must be str, not 3"),
        ({"precision": "fp8"}, "x: precision must be one of fp32, bf16, fp16, not 'fp8'"),
    ],
)
def test_a_damaged_record_is_refused(change: dict, message: str):
    (spec,) = resolve({"refl": []})
    with pytest.raises(UserError) as error:
        Spec.from_record(spec.description() | change, "x")
    assert str(error.value).startswith(message)
