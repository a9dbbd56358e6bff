"""How much less one method needs: known answers on runs made up for it."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import made

from analysis import headline
from analysis.collect import Comparison
from analysis.sheets import printed
from analysis.statistics import Estimate
from analysis.style import looks


def speedup(comparison: Comparison, kind: str = "flops") -> Estimate:
    found = headline.speedup(comparison, "alignprop", "ddpo", kind, "train")
    assert not found.said
    return found.times


@pytest.mark.parametrize("times", [2.0, 4.0, 8.0])
def test_a_method_that_climbs_so_many_times_faster(tmp_path: Path, times: float):
    found = made(tmp_path, lambda p: -2 + times * p, lambda p: -2 + p, 6)
    for kind in headline.KINDS:  # the same for all, as every evaluation costs as much
        value = speedup(found, kind)
        assert value.value == pytest.approx(times) and value.seeds == 6 and not value.bound
        assert (value.low, value.high) == (pytest.approx(times), pytest.approx(times))


def test_25_times_is_seen_where_the_slow_method_has_the_budget_for_it(tmp_path: Path):
    """Its evaluations stand at its own costs; the first of the fast one is a tenth of its own."""
    slow = made(tmp_path / "more", lambda p: -2 + p, lambda p: -2 + p / 25, 5, part=25.0)
    assert slow.budgets == [120.0, 3000.0] and speedup(slow).value == pytest.approx(25)
    equal = made(tmp_path / "equal", lambda p: -2 + p, lambda p: -2 + p / 25, 5)
    assert speedup(equal).value == pytest.approx(10)  # nothing is read off before an evaluation


def test_the_interval_holds_what_other_seeds_could_give(tmp_path: Path):
    found = made(tmp_path, lambda p: -2 + 4 * p, lambda p: -2 + p, 7, spread=0.2)
    value = speedup(found)
    assert value.value == pytest.approx(4.0, rel=0.05)
    assert 1.5 < value.low < 3.9 and 4.1 < value.high < 12
    two = made(tmp_path / "two", lambda p: -2 + 4 * p, lambda p: -2 + p, 2, spread=0.2)
    assert math.isnan(speedup(two).low)


def test_runs_that_never_get_there_bound_the_ratio(tmp_path: Path):
    """Never 0, never infinite: what is known is that they need more than they had."""
    slow_fast = made(tmp_path / "a", lambda p: -2 + 0.5 * p, lambda p: -2 + p, 5)
    behind = speedup(slow_fast)
    assert behind.bound == "at most" and behind.value == pytest.approx(1)
    assert math.isinf(behind.low) and printed(behind, ".3g").startswith("<= 1 [open, ")
    flat = made(tmp_path / "b", lambda p: -2 + p, lambda p: -2 - p, 5)
    found = headline.speedup(flat, "alignprop", "ddpo", "flops", "train")
    assert found.said == "ddpo did not rise" and math.isnan(found.times.value)


def curves(slopes: list[float], budget: float = 8.0) -> headline.Runs:
    """Runs that climb so much per unit of cost, evaluated at 0, 1, ... of it."""
    spent = np.arange(0, budget + 1)
    return headline.Runs(
        spent=np.tile(spent, (len(slopes), 1)),
        kept=np.ones((len(slopes), len(spent)), dtype=bool),
        changes=(np.array(slopes)[:, None] * spent)[..., None],
        prompts=(),
        whole=False,
    )


def test_level_and_cost_of_the_slow_method_are_of_different_runs():
    """Slopes 1 and 2: the level of one half, 8 and 16, is reached by the other at 4, and never."""
    fast, slow = curves([4.0, 4.0, 4.0]), curves([1.0, 2.0])
    found = headline.ratio(fast, slow)
    # level 8: fast at 2, slow at 4; level 16: fast at 4, the slow one needs more than 8
    assert found.times.value == pytest.approx(math.sqrt((4 / 2) * (8 / 4)))
    assert found.times.bound == "at least" and found.times.seeds == 2
    assert headline.halves(10) == (range(5), range(5, 10))


def test_an_evaluation_that_the_guard_does_not_keep_is_not_there():
    fast, slow = curves([4.0] * 3), curves([1.0] * 2)
    spoilt = dataclasses.replace(fast, kept=fast.spent != 2)  # its level is 8, reached at 2
    assert headline.ratio(fast, slow).times.value == pytest.approx(4)
    assert headline.ratio(spoilt, slow).times.value == pytest.approx(8 / 3)
    lost = dataclasses.replace(slow, kept=slow.spent < 5)  # ends with what is kept: 4
    assert headline.final(slow.changes.mean(-1), lost.kept).tolist() == [4.0, 4.0]


def test_crossing_is_linear_between_evaluations_but_not_before_the_first():
    spent, kept = np.array([[0.0, 10.0, 20.0, 30.0]]), np.ones((1, 4), dtype=bool)
    path = np.array([[[0.0, 1.0, 0.5, 2.0]]])

    def at(level: float) -> float:
        return float(headline.crossing(path, spent, kept, np.array([level]))[0, 0])

    assert at(0.25) == 10 and at(1.5) == pytest.approx(20 + 20 / 3) and math.isinf(at(3))


def test_sheet_and_figure_say_the_same(tmp_path: Path):
    found = made(tmp_path, lambda p: -2 + 4 * p, lambda p: -2 + p, 5)
    sheet = headline.sheet(found, "alignprop", "ddpo")
    assert [row["prompts"] for row in sheet.rows] == ["training", "unseen"]
    (column,) = [c for c in sheet.columns if c.startswith("TFLOP")]
    assert sheet.text(column, sheet.rows[0][column]) == "4 [4, 4]"
    assert sheet.rows[0]["learnt"] == "no placebo"
    figure = headline.figure(found, looks(found.labels), "alignprop", "ddpo")
    assert [axes.get_title() for axes in figure.axes] == ["4 [4, 4] times less"] * 3
