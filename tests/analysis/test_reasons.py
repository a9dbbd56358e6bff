"""A reason says no number that the records do not show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis import reasons
from analysis.records import ReportError
from analysis.suite import write_suite

SHOWN = "| alignment | 0.604 [0.59, 0.61] | 1,380 minutes |"


def test_numbers_are_found_but_not_in_names() -> None:
    text = "K = 10 falls from 0.85 to 0.6 in 1,380 minutes on SD v1.5, a tenth."
    assert reasons.numbers(text, ["K = 1", "K = 10"]) == ["0.85", "0.6", "1,380"]


def test_a_number_has_to_be_shown_to_its_own_digits() -> None:
    reasons.check("here", "It falls to 0.6, to 0.60, in 1,380 minutes; no more.", SHOWN)
    for why in ("It falls to 0.61 times that", "the largest norm was 0.43 of 1"):
        shown = SHOWN.replace("0.61]", "0.62]")
        with pytest.raises(ReportError, match=r"truncation.toml, claim 1: why says 0\.\d\d"):
            reasons.check("truncation.toml, claim 1", why, shown)


def test_the_page_refuses_such_a_reason(tmp_path: Path) -> None:
    """A suite of one claim, about memory, whose reason has a number of its own."""
    folder = tmp_path / "here"
    (tmp_path / "mine").mkdir()
    folder.mkdir()
    (tmp_path / "mine.toml").write_text('items = ["memory"]')
    item = """title = "Memory"
[[claims]]
paper = "LoRA halves that."
published = ["memory, with LoRA"]
measure = "memory"
rung = "LoRA"
why = "By our count it is {}."
"""
    entry = {"cells": {}, "evaluations": [], "rewards": [], "ladder": "sd15"}
    index = {"suite": str(tmp_path / "mine.toml"), "command": "run", "items": {"memory": entry}}
    (folder / "suite.json").write_text(json.dumps(index))
    (folder / "memory.json").write_text(json.dumps({"sd15": {"LoRA": 386.8e9}}))
    for number in ("387 GB", "386.8 GB"):
        (tmp_path / "mine" / "memory.toml").write_text(item.format(number))
        assert f"By our count it is {number}." in write_suite(tmp_path)
    (tmp_path / "mine" / "memory.toml").write_text(item.format("410 GB"))
    with pytest.raises(ReportError, match=r"memory.toml, claim 1: why says 410, which none"):
        write_suite(tmp_path)
