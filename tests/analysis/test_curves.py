"""The figures about runs: what they draw, and which points are on the front."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import comparison, final, write_cell

from analysis.curves import front, pareto, reward_curve
from analysis.style import looks


def test_pareto_front() -> None:
    points = np.array([[0, 3], [1, 2], [1, 1], [2, 2], [3, 0], [0, 0]])
    assert front(points).tolist() == [[0, 3], [2, 2], [3, 0]]


def test_nothing_is_beyond_the_pareto_line(tmp_path: Path) -> None:
    """Also when one point beats all others: the line goes on to both axes."""
    write_cell(tmp_path, "ddpo", 0)
    found = comparison(tmp_path)
    [axes] = pareto(found, looks(["ddpo"])).axes
    line = next(line for line in axes.lines if line.get_drawstyle() == "steps-pre")
    x, y = (np.asarray(values, dtype=float) for values in line.get_data())
    assert (x[0], y[-1]) == (axes.get_xlim()[0], axes.get_ylim()[0])
    for _, row in found.evals.query("split == 'unseen'").iterrows():
        above = y[x >= row["jpeg"] - 1e-12]  # the level at a point is that of the next corner
        assert len(above) and row["diversity"] <= above[0] + 1e-12


def test_the_reward_is_drawn_against_what_was_spent(tmp_path: Path) -> None:
    cell = write_cell(tmp_path, "ddpo", 0)
    figure = reward_curve(comparison(tmp_path), looks(["ddpo"]))
    assert [a.get_title() for a in figure.axes] == ["training prompts", "unseen prompts"]
    for axes, split in zip(figure.axes, ("train", "unseen"), strict=True):
        base, line = axes.lines
        assert list(line.get_xdata()) == pytest.approx([0, 24, 48, 72, 96, 120])  # TFLOP
        assert line.get_ydata()[0] == pytest.approx(base.get_ydata()[0])
        assert line.get_ydata()[-1] == pytest.approx(final(cell, split))
