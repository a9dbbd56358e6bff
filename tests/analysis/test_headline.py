"""How much less one method needs: known answers on runs made up for it."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import write_cell, write_evaluation

from analysis import claims, headline
from analysis.collect import Comparison, collect
from analysis.headline import crossing, ratio
from analysis.style import looks

Curve = Callable[[float], float]


def write(runs: Path, method: str, seed: int, reward: Curve, finished: bool = True) -> None:
    """A cell whose training reward is that of the share of the budget, at 11 evaluations."""
    cell = write_cell(runs, method, seed, evals=11, finished=finished)
    lines = [json.loads(line) for line in (cell / "evals.jsonl").read_text().splitlines()]
    for line in lines:
        line["rewards"]["jpeg"] = reward(line["fraction"])
    (cell / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def made(runs: Path, fast: Curve, slow: Curve, seeds: int, spread: float = 0.0) -> Comparison:
    """Two methods; the runs of ``fast`` are spread around its curve."""
    for seed in range(seeds):
        shift = spread * (seed - (seeds - 1) / 2)
        write(runs, "alignprop", seed, lambda p, s=shift: fast(p) + s * (p > 0))
        write(runs, "ddpo", seed, slow)
    [comparison] = collect(runs).comparisons
    return comparison


def speedup(comparison: Comparison, kind: str = "flops") -> headline.Estimate:
    return headline.speedup(comparison, "alignprop", "ddpo", kind, "train")


@pytest.mark.parametrize("times", [2.0, 4.0, 25.0])
def test_a_method_that_climbs_so_many_times_faster(tmp_path: Path, times: float):
    found = made(tmp_path, lambda p: -2 + times * p, lambda p: -2 + p, 5)
    for kind in headline.KINDS:  # the same for all, as every evaluation costs as much
        value = speedup(found, kind)
        assert value.value == pytest.approx(times) and value.seeds == 5
        assert (value.low, value.high) == (pytest.approx(times), pytest.approx(times))


def test_the_interval_holds_what_other_seeds_could_give(tmp_path: Path):
    found = made(tmp_path, lambda p: -2 + 4 * p, lambda p: -2 + p, 7, spread=0.2)
    value = speedup(found)
    assert value.value == pytest.approx(4.0, rel=0.05)
    assert 2 < value.low < 3.9 and 4.1 < value.high < 8
    two = made(tmp_path / "two", lambda p: -2 + 4 * p, lambda p: -2 + p, 2, spread=0.2)
    assert math.isnan(speedup(two).low)


def test_never_there_and_there_from_the_start(tmp_path: Path):
    assert speedup(made(tmp_path / "a", lambda p: -2 + 0.5 * p, lambda p: -2 + p, 5)).value == 0
    assert math.isinf(speedup(made(tmp_path / "b", lambda p: -2 + p, lambda p: -2 - p, 5)).value)


def test_crossing_is_linear_between_evaluations():
    curve = np.array([[0.0, -2.0], [10.0, -1.0], [20.0, -1.5], [30.0, 0.0]])
    assert crossing(curve, -1.25) == 7.5 and crossing(curve, -2.0) == 0.0
    assert crossing(curve, -0.5) == pytest.approx(20 + 20 / 3) and math.isinf(crossing(curve, 1))
    assert ratio(curve, np.array([[0.0, -2.0], [40.0, -1.5]])) == 8.0


def test_sheet_and_figure_say_the_same(tmp_path: Path):
    found = made(tmp_path, lambda p: -2 + 4 * p, lambda p: -2 + p, 5)
    sheet = headline.sheet(found, "alignprop", "ddpo")
    assert [row["prompts"] for row in sheet.rows] == ["training", "unseen"]
    (column,) = [c for c in sheet.columns if c.startswith("TFLOP")]
    assert sheet.text(column, sheet.rows[0][column]) == "4 [4, 4]"
    figure = headline.figure(found, looks(found.labels), "alignprop", "ddpo")
    assert [axes.get_title() for axes in figure.axes] == ["4 times less [4, 4]"] * 3


def data(comparison: Comparison | None = None, evaluated: Path | None = None) -> claims.Data:
    others = collect(evaluated).evaluated if evaluated else []
    return claims.Data(
        rewards=["jpeg", "alignment"],
        comparisons=[comparison] if comparison else [],
        evaluated=others,
        memory={"LoRA, every sampling step stored": 512e9 / 1.2, "other": 512e9 / 4},
    )


def test_claims_hold_fail_or_stay_undecided(tmp_path: Path):
    found = data(made(tmp_path, lambda p: -2 + 4 * p, lambda p: -2 + p, 5, spread=0.1))

    def said(measure: str, *arms: str, times: float = 1) -> claims.Finding:
        claim = {"measure": measure, "arms": arms, "split": "unseen", "times": times}
        return claims.findings(claim, found)[0]

    better = said("difference", "alignprop", "ddpo")
    assert better.value.value == pytest.approx(3.0, abs=0.05) and better.verdict == "holds"
    assert said("difference", "ddpo", "alignprop").verdict == "fails"
    assert said("difference", "ddpo", "ddpo").verdict == "undecided"
    assert said("gain", "alignprop").value.value == pytest.approx(4.0, abs=0.05)
    assert said("speedup", "alignprop", "ddpo").verdict == "holds"  # 4 times
    assert said("speedup", "alignprop", "ddpo", times=25).verdict == "fails"
    assert claims.findings({"measure": "gain", "arms": ["rwr"], "split": "train"}, found) == []


def test_claims_about_checkpoints(tmp_path: Path):
    for kind in ("sweep", "parts"):
        write_evaluation(tmp_path / kind, kind)
    (soup, _, other, _) = claims.findings(
        {"measure": "soup", "at": 0.5}, data(None, tmp_path / "sweep")
    )
    assert soup.value.value == pytest.approx(0.25) and soup.verdict.startswith("holds")
    assert other.value.value == pytest.approx(-0.025) and other.verdict.startswith("fails")


def test_memory_is_within_a_factor_of_what_was_published():
    claim = {"measure": "memory", "published": ["memory, with LoRA"]}
    near, far = (
        claims.findings({**claim, "rung": rung}, data())[0].verdict
        for rung in ("LoRA, every sampling step stored", "other")
    )
    assert near == "within a factor of 1.5" and far == "not within a factor of 1.5"


def test_findings_in_short():
    value = headline.Estimate(value=1.0, seeds=5)
    words = ["holds", "undecided: ddpo did not rise", "holds", "holds, without an interval"]
    found = [claims.Finding("jpeg", value, word) for word in words]
    assert (
        claims.in_short(found)
        == "2 of 4 holds; 1 of 4 undecided; 1 of 4 holds, without an interval"
    )
    assert claims.in_short([]) == "no runs yet"
