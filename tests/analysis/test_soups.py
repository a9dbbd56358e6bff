"""The figures about evaluated checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_runs import write_evaluation

from analysis import soups
from analysis.collect import collect


def test_a_sweep_is_drawn_as_changes_from_the_base_model(tmp_path: Path) -> None:
    write_evaluation(tmp_path, "sweep")
    [evaluated] = collect(tmp_path).evaluated
    axes = soups.sweep(evaluated).axes[0]
    base, *lines = axes.lines
    assert set(base.get_ydata()) == {0}
    assert len(lines) == 2  # 0.5 per unit of the coefficient on both splits
    for line in lines:
        assert list(line.get_ydata()) == pytest.approx([0, 0.25, 0.5])
    seeds = soups.sweep(*[evaluated] * 3)
    assert len(seeds.axes[0].lines) == 1 + 2 * (3 + 1)  # every seed, and the typical one


def test_parts_of_the_chain_are_drawn_by_their_share(tmp_path: Path) -> None:
    write_evaluation(tmp_path, "parts")
    [evaluated] = collect(tmp_path).evaluated
    _, first, last = soups.early_late(evaluated).axes[0].lines
    for line in (first, last):
        assert list(line.get_xdata()) == pytest.approx([100 / 3, 200 / 3, 100])
        assert list(line.get_ydata()) == pytest.approx([1 / 6, 1 / 3, 1 / 2])


def test_the_sheet_has_levels_of_every_candidate(tmp_path: Path) -> None:
    write_evaluation(tmp_path, "sweep")
    [evaluated] = collect(tmp_path).evaluated
    rows = soups.sheet(evaluated).rows
    names = ["base model", "0", "0.5", "1"]
    assert [row["candidate"] for row in rows] == [n for n in names for _ in range(2)]
    assert [row["split"] for row in rows] == ["train", "unseen"] * 4
    values = [row["jpeg"].value for row in rows[::2]]  # type: ignore[union-attr]
    assert values == pytest.approx([-2.2, -2.2, -1.95, -1.7])
