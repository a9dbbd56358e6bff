"""Records of any origin: what counts, and what is said about the rest."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from synthetic_runs import GAIN, same, write_cell

from analysis import __main__
from analysis.collect import collect
from analysis.records import Note, ReportError


def test_foreign_records_and_directories_are_reported(tmp_path: Path) -> None:
    cell = write_cell(tmp_path, "ddpo", 0)
    before = collect(tmp_path)
    with (cell / "evals.jsonl").open("a") as file:
        file.write('{"loss": 3}\n')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "log.jsonl").touch()
    for name, content in (("alien", '{"foo": 1}'), ("list", "[]"), ("garbage", "\x00")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cell.json").write_text(content)
    after = collect(tmp_path)
    same(before, after)
    text = "\n".join(map(str, after.notes))
    assert (
        "foreign: ddpo-animals-s0-0: a record of evals.jsonl was left out (KeyError: 'split')"
        in text
    )
    assert "foreign: other: records without cell.json" in text
    assert "failed: alien: foreign: cell.json has no method" in text
    assert "failed: list" in text and "failed: garbage" in text


@pytest.mark.parametrize(
    "change",
    [
        {"reward": "other"},
        {"seed": None},
        {"config": 3},
        {"reported": 3},
        {"units": {}},
        {"budget": {"kind": 3, "amount": 1.0}},
        {"budget": {"kind": "steps", "amount": "a"}},
        {"method": 3},
    ],
)
def test_a_damaged_cell_costs_itself(change: dict, tmp_path: Path) -> None:
    write_cell(tmp_path, "ddpo", 0)
    before = collect(tmp_path)
    damaged = write_cell(tmp_path, "alignprop", 0)
    record = json.loads((damaged / "cell.json").read_text())
    (damaged / "cell.json").write_text(json.dumps(record | change))
    after = collect(tmp_path)
    same(before, after)
    assert [note.where for note in after.notes if note.kind == "failed"] == [damaged.name]


def test_records_with_words_for_numbers_are_left_out(tmp_path: Path) -> None:
    cell = write_cell(tmp_path, "ddpo", 0)
    before = collect(tmp_path)
    line = json.loads((cell / "evals.jsonl").read_text().splitlines()[-1])
    with (cell / "evals.jsonl").open("a") as file:
        for wrong in ({"flops": "many"}, {"rewards": 3}, {"per_image": [3]}, {"step": None}):
            file.write(json.dumps(line | wrong) + "\n")
    with (cell / "steps.jsonl").open("a") as file:
        file.write('{"step": "last"}\n')
    after = collect(tmp_path)
    same(before, after)
    assert sum("left out" in str(note) for note in after.notes) == 5


def test_merging_directories_in_any_order(tmp_path: Path) -> None:
    """Two machines, one cell on both, of which one did not finish it."""
    one, two, whole = (tmp_path / name for name in ("one", "two", "whole"))
    write_cell(one, "ddpo", 0)
    write_cell(one, "alignprop", 0, evals=3, finished=False)
    write_cell(two, "alignprop", 0)
    for method in ("ddpo", "alignprop"):
        write_cell(whole, method, 0)
    same(collect(one, two), collect(whole))
    same(collect(two, one), collect(whole))
    assert collect(one, two).notes == collect(two, one).notes
    assert collect(one, two).notes[0].kind == "duplicated"


def test_missing_failed_and_unfinished_cells_are_listed(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_cell(tmp_path, "ddpo", seed)
    write_cell(tmp_path, "refl", 1)
    (write_cell(tmp_path, "ddpo-sf", 0, evals=1) / "steps.jsonl").write_text("")
    failed = write_cell(tmp_path, "rwr", 0, finished=False)
    (failed / "failed.json").write_text(json.dumps({"error": "Traceback\nRuntimeError: boom"}))
    (write_cell(tmp_path, "alignprop", 0, finished=False) / "evals.jsonl").unlink()
    found = collect(tmp_path)
    text = "\n".join(map(str, found.notes))
    assert "failed: rwr-animals-s0-0: RuntimeError: boom" in text
    assert "unfinished: alignprop-animals-s0-0: optimizer step 5" in text
    assert "no step: ddpo-sf-animals-s0-0: the budget is too small" in text
    assert "missing: refl, seed 0" in text and "missing: ddpo," not in text
    assert "rwr" not in set(found.comparisons[0].evals["label"])


def test_cells_that_were_asked_for_and_never_begun_are_listed(tmp_path: Path) -> None:
    """Two machines, each with the files of all cells and half of them run; a cell of neither."""
    for machine, method in (("one", "ddpo"), ("two", "refl")):
        write_cell(tmp_path / machine, method, 0)
        for other in {"ddpo", "refl", "rwr"} - {method}:
            cell = write_cell(tmp_path / f"of {machine}", other, 0)
            there = tmp_path / machine / cell.name
            there.mkdir()
            shutil.copy(cell / "cell.json", there)
    found = collect(tmp_path / "one", tmp_path / "two")
    assert found.notes == [Note("missing", "rwr-animals-s0-0", "asked for and never begun")]
    assert {cell.label for c in found.comparisons for cell in c.cells} == {"ddpo", "refl"}


def test_file_order_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in GAIN:
        write_cell(tmp_path, method, 0)
        write_cell(tmp_path, method, 0, task="fruit")
    expected = collect(tmp_path)
    listed = Path.iterdir

    def shuffled(path: Path) -> list[Path]:
        found = sorted(listed(path))
        random.Random(1).shuffle(found)
        return found

    monkeypatch.setattr(Path, "iterdir", shuffled)
    same(collect(tmp_path), expected)


def test_what_differs_is_not_averaged(tmp_path: Path) -> None:
    for k in (1, 10):
        write_cell(tmp_path, "alignprop", 0, config={"lr": 1e-3, "truncation": {"k": k}})
    write_cell(tmp_path, "ddpo", 0, task="fruit")
    other = write_cell(tmp_path, "ddpo", 1)
    info = json.loads((other / "cell.json").read_text())
    (other / "cell.json").write_text(json.dumps(info | {"evaluation": {"features": "another"}}))
    found = collect(tmp_path).comparisons
    assert len(found) == 3
    labels = {cell.label for comparison in found for cell in comparison.cells}
    assert labels == {"alignprop (k=1)", "alignprop (k=10)", "ddpo"}


@pytest.mark.parametrize("case", ["empty", "missing", "cell"])
def test_command_line_error(tmp_path: Path, case: str, capsys) -> None:
    where = {"empty": tmp_path, "missing": tmp_path / "no"}.get(case)
    where = where or write_cell(tmp_path, "ddpo", 0)
    with pytest.raises(ReportError):
        collect(where)
    assert __main__.main((where,)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    shutil.rmtree(tmp_path)
