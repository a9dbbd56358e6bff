"""The preference test: which pairs are asked, and what answers say."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path

from PIL import Image
from synthetic_runs import UNSEEN, comparison, write_cell

from analysis.preference import questions, results
from analysis.records import Note
from analysis.statistics import win_rate
from analysis.style import BASE


def test_saved_answers_become_a_win_rate(tmp_path: Path) -> None:
    pair = {"comparison": "animals", "one": "ddpo", "two": "alignprop"}
    choices = ["alignprop"] * 6 + ["ddpo"] * 2 + ["tie"] * 2
    turned = pair | {"one": "alignprop", "two": "ddpo"}
    answers = [(turned if i % 2 else pair) | {"choice": c} for i, c in enumerate(choices)]
    (tmp_path / "preferences-1.json").write_text(json.dumps({"answers": answers}))
    (tmp_path / "preferences-2.json").write_text('{"answers": [1]}')
    notes: list[Note] = []
    sheet = results([tmp_path], notes)
    assert sheet and sheet.rows[0]["preferred"] == "alignprop over ddpo"
    assert sheet.rows[0]["win rate"] == win_rate(7, 10)
    assert [(note.kind, note.where) for note in notes] == [("foreign", "preferences-2.json")]


def test_every_pair_is_asked_and_different_prompts_come_first(tmp_path: Path) -> None:
    cells = {m: write_cell(tmp_path, m, 0, images=True) for m in ("alignprop", "ddpo")}
    asked = questions(comparison(tmp_path))
    pairs = dict.fromkeys((question["one"], question["two"]) for question in asked)
    assert list(pairs) == [(BASE, "alignprop"), (BASE, "ddpo"), ("alignprop", "ddpo")]
    first = asked[:12]
    assert [question["prompt"] for question in first] == UNSEEN * 2
    assert [int(question["id"]) for question in first] == [*range(0, 12, 2), *range(1, 12, 2)]
    for side, step in (("first", 0), ("second", 100)):
        content = base64.b64decode(first[1][side].removeprefix("data:image/png;base64,"))
        file = cells["alignprop"] / "images" / "unseen" / f"{step:06d}" / "002.png"
        assert Image.open(BytesIO(content)).tobytes() == Image.open(file).tobytes()
