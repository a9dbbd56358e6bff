"""The page: what is on it, escaped, and every picture once."""

from __future__ import annotations

import base64
import json
import re

from analysis.page import HEADS, Section, page
from analysis.records import Note
from analysis.sheets import Sheet


def test_tables_figures_and_notes_are_on_it() -> None:
    rows = [
        {"method": "a<b", "value": "1,234.5 [1, 2]"},
        {"method": "c", "value": "-0.25"},
        {"method": "d", "value": "-"},
    ]
    sheet = Sheet(title="", note="a & b", columns=["method", "value"], rows=rows)
    section = Section("one", {"table": sheet}, figures={"a curve": b"pixels"})
    text = page([section], [Note("missing", "ddpo, seed 1")])
    assert text.startswith("<!doctype html>")
    assert re.findall(r'data-number="([^"]*)"', text) == ["", "1234.5", "", "-0.25", "", ""]
    assert "a&lt;b" in text and "a<b" not in text and "a &amp; b" in text
    assert HEADS["table"] in text and "<li>missing: ddpo, seed 1</li>" in text
    uri = "data:image/png;base64," + base64.b64encode(b"pixels").decode()
    assert f'<img src="{uri}" alt="a curve">' in text
    assert 'id="questions"' not in text  # nothing to ask


def test_a_picture_in_several_questions_is_there_once() -> None:
    def question(one: str, two: str) -> dict[str, str]:
        sides = {"first": f"data:{one}", "second": f"data:{two}"}
        return {"prompt": "cat", "one": one, "two": two, "id": "0"} | sides

    asked = [Section("task", questions=[question("a", "b"), question("a", "c")])]
    text = page([*asked, Section("other", questions=[question("c", "b")])], [])

    def read(name: str) -> list:
        [content] = re.findall(rf'id="{name}">(.*?)</script>', text)
        return json.loads(content)

    assert read("pictures") == ["data:a", "data:b", "data:c"]
    found = [(q["comparison"], q["one"], q["first"], q["second"]) for q in read("questions")]
    assert found == [("task", "a", 0, 1), ("task", "a", 0, 2), ("other", "c", 2, 1)]
