"""Methods at equal drift and at equal fidelity: known answers on runs made up for it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import write_cell

from analysis import progress
from analysis.collect import Comparison, collect
from analysis.style import looks


def made(runs: Path, method: str, seed: int, per_drift: float, far: float) -> None:
    """A run that drifts ``far`` in even steps, gains so much per drift and loses alignment 2 to 1.

    The base model's pictures of a prompt differ in alignment by a deviation of 0.2 sqrt(0.5).
    """
    cell = write_cell(runs, method, seed, evals=5)
    lines = [json.loads(line) for line in (cell / "evals.jsonl").read_text().splitlines()]
    for line in lines:
        line["drift"] = far * line["fraction"]
        score = {"jpeg": -2 + per_drift * line["drift"], "alignment": 0.8 - 2 * line["drift"]}
        line["rewards"] = score
        for i, picture in enumerate(line["per_image"]):
            picture["rewards"] = {k: v + 0.1 * (-1) ** i for k, v in score.items()}
    (cell / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    """Two methods on one line, one of which goes further; a third below it."""
    for seed in range(5):
        made(tmp_path, "alignprop", seed, 3.0, 0.3 + 0.01 * seed)
        made(tmp_path, "refl", seed, 3.0, 0.11)
        made(tmp_path, "ddpo", seed, 1.0 + 0.1 * seed, 0.3)
    [found] = collect(tmp_path).comparisons
    return found


def test_methods_on_one_path_gain_the_same_where_they_are_equally_far(
    comparison: Comparison,
) -> None:
    sheet = progress.table(comparison)
    assert sheet is not None
    rows = {str(row["method"]): row for row in sheet.rows}
    for far in (0.05, 0.1):
        one, other = (rows[method][f"drift {far:g}"] for method in ("alignprop", "refl"))
        assert one.value == pytest.approx(3 * far) == other.value  # type: ignore[union-attr]
        below = rows["ddpo"][f"drift {far:g}"]
        assert below.value == pytest.approx(1.2 * far)  # type: ignore[union-attr]
        assert below.high < 3 * far  # type: ignore[union-attr]
    assert rows["refl"]["drift 0.2"] == "-"


def test_equal_fidelity_is_in_deviations_within_a_prompt(comparison: Comparison) -> None:
    """A loss of one deviation, 0.2 sqrt(0.5), is a drift of half of it."""
    drift, loss = progress.distances(comparison, "train")
    unit = 0.2 * math.sqrt(0.5)
    assert drift.name == "drift" and loss.unit == pytest.approx(unit)
    sheet = progress.table(comparison)
    assert sheet is not None
    (row,) = [row for row in sheet.rows if row["method"] == "alignprop"]
    assert row["alignment down 1"].value == pytest.approx(3 * unit / 2)  # type: ignore[union-attr]


def test_a_mean_over_the_runs_that_got_there_is_no_answer(tmp_path: Path) -> None:
    for seed in range(5):
        made(tmp_path, "ddpo", seed, 1.0, 0.25 if seed else 0.05)
    [found] = collect(tmp_path).comparisons
    sheet = progress.table(found)
    assert sheet is not None and sheet.rows[0]["drift 0.2"] == "4 of 5 there"


def test_a_place_on_a_path_that_turns_is_the_first() -> None:
    path = np.array([0.0, 0.4, 0.1, 0.8])
    assert progress.place(path, 0.2) == (0, pytest.approx(0.5))
    assert progress.place(path, 0.6) == (2, pytest.approx(5 / 7))
    assert progress.place(path, 0.9) is None and progress.place(path, 0.0) == (0, 0.0)


def test_the_figure_has_a_panel_for_each_distance(comparison: Comparison) -> None:
    drawn = progress.figure(comparison, looks(comparison.labels))
    assert drawn is not None
    shown = [axes.get_xlabel() for axes in drawn.axes]
    assert shown == ["drift (1 - cosine)", "alignment lost (deviations)"]
