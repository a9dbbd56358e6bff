"""Our intervals hold the truth about as often as they say, where they were simulated."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis import coverage
from analysis.coverage import SHAPES, measure, sheet

RESULTS = Path(__file__).parents[2] / "results"


@pytest.mark.parametrize("shape", SHAPES)
def test_five_runs_of_any_shape(shape: str) -> None:
    found = measure(shape, 5, samples=300)
    assert found["runs"] >= 0.93 and found["runs, prompts and pictures"] >= 0.93
    assert found["percentile bootstrap"] < 0.94  # why it is not used


def test_ten_normal_runs() -> None:
    found = measure("normal", 10, samples=300)
    assert 0.93 <= found["runs"] <= 0.99 and 0.93 <= found["runs, prompts and pictures"] <= 0.99


def test_what_was_measured_stands_on_the_results_page() -> None:
    found = sheet(RESULTS)
    assert found is not None and len(found.rows) == len(SHAPES) * len(coverage.SEEDS)
    lowest = min(row["runs"].value for row in found.rows)  # type: ignore[union-attr]
    assert lowest >= 0.94
    assert found.title in (RESULTS / "README.md").read_text("utf-8")
