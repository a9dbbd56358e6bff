"""Records as they are read, also where they are cut short, broken or repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_runs import TRAIN, UNSEEN, guarded, same, write_cell

from analysis.collect import collect
from analysis.records import Note, ReportError, natural, read_evals, read_json


def test_a_truncated_last_line_is_left_out_and_reported(tmp_path: Path) -> None:
    cell = write_cell(tmp_path, "ddpo", 0)
    before = collect(tmp_path)
    assert not before.notes
    for name in ("evals.jsonl", "steps.jsonl"):
        with (cell / name).open("a") as file:
            file.write('{"step": 120, "spl')
    after = collect(tmp_path)
    same(before, after)
    assert [note.kind for note in after.notes] == ["truncated", "truncated"]


def test_a_broken_line_in_the_middle_fails_the_cell(tmp_path: Path) -> None:
    bad = write_cell(tmp_path, "rwr", 0)
    lines = (bad / "evals.jsonl").read_text().splitlines(keepends=True)
    (bad / "evals.jsonl").write_text("".join([lines[0], '{"step"\n', *lines[1:]]))
    expected = Note("failed", "rwr-animals-s0-0", "evals.jsonl line 2 is not JSON")
    assert collect(tmp_path).notes == [expected]


def test_repeated_records_count_once_and_are_reported(tmp_path: Path) -> None:
    cell = write_cell(tmp_path, "ddpo", 0)
    before = collect(tmp_path)
    text = (cell / "evals.jsonl").read_text()
    (cell / "evals.jsonl").write_text("".join(text.splitlines(keepends=True)[:6]) + text)
    after = collect(tmp_path)
    same(before, after)
    assert str(after.notes[0]).startswith("duplicated: ddpo-animals-s0-0: 6 evaluations")


def test_the_verdict_on_training_prompts_holds_for_unseen_ones(tmp_path: Path) -> None:
    cell, verdicts = write_cell(tmp_path, "ddpo", 0), [True, True, False, True, False, False]
    guarded(cell, verdicts)
    frame = read_evals(cell, read_json(cell / "cell.json"), [])
    for split in ("train", "unseen"):
        rows = frame[frame["split"] == split]
        assert rows["kept"].tolist() == verdicts
        assert rows["spent"].tolist() == pytest.approx([0, 24, 48, 72, 96, 120])  # TFLOP


def test_the_split_is_whole_where_every_training_prompt_was_drawn(tmp_path: Path) -> None:
    cell = write_cell(tmp_path, "ddpo", 0)
    info = read_json(cell / "cell.json")
    for prompts, whole in ((TRAIN, {"train"}), ([*TRAIN, "unicorn"], set())):
        frame = read_evals(cell, info | {"prompts": {"train": prompts, "unseen": UNSEEN}}, [])
        assert set(frame[frame["whole"]]["split"]) == whole


def test_labels_are_sorted_as_people_do() -> None:
    assert sorted(["K = 10", "K = 5", "K"], key=natural) == ["K", "K = 5", "K = 10"]


@pytest.mark.parametrize(("text", "message"), [("[1]", "not an object"), ("{", "cannot be read")])
def test_a_file_that_is_no_object_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "cell.json").write_text(text)
    with pytest.raises(ReportError, match=f"cell.json .*{message}"):
        read_json(tmp_path / "cell.json")
