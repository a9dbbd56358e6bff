"""Published values: where they are from, and where they stand."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_runs import comparison, write_cell

from analysis import published
from analysis.records import ReportError


def test_published_values_have_a_source_and_stand_beside_ours(tmp_path: Path) -> None:
    for value in published.values():
        assert value["source"] and value["certainty"] in {"source", "figure", "quoted", "weak"}
    write_cell(tmp_path, "alignprop", 0)
    ours = comparison(tmp_path)
    assert published.beside(ours) == {}
    object.__setattr__(ours, "backbone", "sd15")
    object.__setattr__(ours, "reward", "aesthetic")
    assert published.beside(ours)["alignprop"] == "8.94 train (weak); 8.71 unseen (weak)"


def test_a_value_is_said_with_its_method_source_and_certainty() -> None:
    expected = "memory, with LoRA: alignprop 512 GB (p. 5, quoted)"
    assert published.said(["memory, with LoRA"]) == expected
    with pytest.raises(ReportError, match="no quantity 'memory of an elephant'"):
        published.said(["memory of an elephant"])
    rows = published.sheet().rows
    assert len(rows) == len(published.values())
    assert {"800,000", "512"} <= {row["value"] for row in rows}
