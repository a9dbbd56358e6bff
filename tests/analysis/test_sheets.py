"""One table in three formats, and how its numbers are printed."""

from __future__ import annotations

import math
from pathlib import Path

from synthetic_runs import comparison, write_cell

from analysis import tables
from analysis.sheets import Sheet, latex, markdown, numbers
from analysis.statistics import Estimate


def test_the_three_formats_say_the_same(tmp_path: Path) -> None:
    for seed in range(5):
        for k in ("a|b", "c_d"):
            write_cell(tmp_path, "ddpo", seed, config={"k_x": k})
    sheet = tables.generalisation(comparison(tmp_path))
    assert sheet is not None
    frame = numbers([sheet])
    assert r"k_x=a\|b" in markdown(sheet) and r"k\_x=c\_d" in latex(sheet)
    assert r"\toprule" in latex(sheet)
    value, low = (frame[f"jpeg, unseen{end}"].iloc[1] for end in ("", " low"))
    for text in (markdown(sheet), latex(sheet)):
        assert f"{value:.3f} [{low:.3f}, " in text
    assert sheet.words() == [column in {"method", "learnt"} for column in sheet.columns]


def test_what_is_not_known_is_printed_as_such() -> None:
    sheet = Sheet(title="", note="", columns=["x"], rows=[], styles={"x": ".3g"})
    for value, expected in (
        (Estimate(value=2, low=1, high=math.inf, seeds=5, bound="at least"), ">= 2 [1, open]"),
        (Estimate(value=1 / 3, seeds=2), "0.333"),
        (Estimate(value=math.nan, seeds=0), "-"),  # nothing was measured
        (Estimate(value=math.nan, seeds=3), "nan"),  # a run diverged
    ):
        assert sheet.text("x", value) == expected
