"""Tables and targets on synthetic runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import GAIN, final, write_cell

from analysis import published, tables
from analysis.collect import Comparison, collect
from analysis.curves import front, pareto
from analysis.sheets import Sheet, latex, markdown, numbers
from analysis.statistics import Estimate
from analysis.style import looks
from analysis.targets import at_cost, cost, last_kept, target


def comparison(runs: Path) -> Comparison:
    [found] = collect(runs).comparisons
    return found


def row(sheet: Sheet | None, name: str) -> dict[str, Estimate]:
    assert sheet is not None
    return next(dict(r) for r in sheet.rows if r[sheet.columns[0]] == name)  # type: ignore[arg-type]


def test_few_seeds_give_their_mean_and_no_interval(tmp_path: Path) -> None:
    cells = [write_cell(tmp_path, "ddpo", seed) for seed in range(3)]
    sheet = tables.generalisation(comparison(tmp_path))
    ours = row(sheet, "ddpo")
    assert ours["jpeg, training"].value == pytest.approx(np.mean([final(c) for c in cells]))
    assert math.isnan(ours["jpeg, training"].low)
    assert row(sheet, "base model")["jpeg, training"].value == pytest.approx(-2.2)
    assert sheet and "no interval is given" in sheet.note


def test_costs_are_means_over_runs_and_memory_is_the_most(tmp_path: Path) -> None:
    for seed in range(2):
        cell = write_cell(tmp_path, "ddpo", seed)
        steps = [{"step": k, "peak_bytes": (k + seed) * 2**30} for k in range(3)]
        (cell / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    ours = row(tables.costs(comparison(tmp_path)), "ddpo")
    assert (ours["optimizer steps"].value, ours["seconds"].value) == (100, 300)
    assert ours["TFLOP"].value == pytest.approx(120)
    assert ours[tables.PEAK].value == 3


def test_the_base_model_is_one_model_however_many_runs_start_from_it(tmp_path: Path) -> None:
    for seed in range(5):
        write_cell(tmp_path, "ddpo", seed)
    for build in (tables.generalisation, tables.measures):
        base = row(build(comparison(tmp_path)), "base model")
        assert "seeds" not in base
        values = [value for name, value in base.items() if name != "method"]
        assert len(values) >= 6 and all(math.isnan(value.low) for value in values)


def test_five_seeds_give_an_interval(tmp_path: Path) -> None:
    for seed in range(5):
        write_cell(tmp_path, "ddpo", seed)
    sheet = tables.generalisation(comparison(tmp_path))
    value = row(sheet, "ddpo")["jpeg, unseen"]
    assert value.low < value.value < value.high
    assert sheet and "95 % interval over seeds, prompts and pictures" in sheet.note


def test_methods_are_ranked_by_the_reward_on_unseen_prompts(tmp_path: Path) -> None:
    for method in sorted(GAIN):
        write_cell(tmp_path, method, 0)
    sheet = tables.generalisation(comparison(tmp_path))
    assert sheet and sheet.rows[0]["method"] == "base model"
    scores = [r["jpeg, unseen"].value for r in sheet.rows[1:]]  # type: ignore[union-attr]
    assert len(scores) > 1 and scores == sorted(scores, reverse=True)


def test_adding_a_method_leaves_the_scores_of_others_unchanged(tmp_path: Path) -> None:
    for method in ("alignprop", "ddpo"):
        for seed in range(5):
            write_cell(tmp_path, method, seed)
    built = (*tables.TABLES.values(), lambda c: tables.across([c, c]))
    before = [build(comparison(tmp_path)) for build in built]
    for seed in range(5):
        write_cell(tmp_path, "zoo", seed, evals=9)
    after = [build(comparison(tmp_path)) for build in built]
    compared = 0
    for one, other in zip(before, after, strict=True):
        for line in one.rows if one else ():
            assert other is not None
            again = row(other, str(line[one.columns[0]]))  # type: ignore[union-attr]
            shared = line.keys() & again.keys()
            compared += len(shared)
            for k in shared:
                assert one.text(k, line[k]) == other.text(k, again[k])
    assert compared > 60


def test_matched_compute_reads_one_set_of_runs_at_equal_cost(tmp_path: Path) -> None:
    for method in ("alignprop", "ddpo"):
        write_cell(tmp_path, method, 0)
    found = comparison(tmp_path)
    sheet = tables.matched_compute(found)
    assert sheet and "100 TFLOP" in sheet.columns and "2,000 reward queries" in sheet.columns
    runs = found.evals.query("split == 'unseen' and label == 'ddpo'")
    expected = runs[runs["step"] == 80]["jpeg"].item()  # evaluated at 96 and at 120 TFLOP
    assert row(sheet, "ddpo")["100 TFLOP"].value == pytest.approx(expected)


def test_at_cost() -> None:
    run = pd.DataFrame({"flops": [0, 10, 30], "fraction": [0, 0.5, 1], "r": [1.0, 2.0, 6.0]})
    assert [at_cost(run, "flops", x)["r"].item() for x in (0, 5, 20, 30)] == [1, 1, 2, 6]
    assert at_cost(run, "flops", 31).empty


def test_a_target_reached_by_spoiling_the_rest_does_not_count() -> None:
    kept = [None, False, True, True]
    run = pd.DataFrame({"flops": [0, 10, 20, 30], "r": [0, 2, 2, 1], "kept": kept})
    assert cost(run, "flops", "r", 2, guard=False) == 10
    assert cost(run, "flops", "r", 2, guard=True) == 20
    assert cost(run, "flops", "r", 3, guard=False) == math.inf


def guarded(cell: Path, kept: list[bool]) -> None:
    """Write the guard's verdict into the training evaluations of a cell, and its floors."""
    lines = [json.loads(line) for line in (cell / "evals.jsonl").read_text().splitlines()]
    for line in lines:
        if line["split"] == "train":
            line |= {"kept": kept[line["step"] // 20], "floors": {"judge": -0.31}}
    (cell / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_guarded_run_ends_with_the_last_checkpoint_that_is_kept_on_both_splits(
    tmp_path: Path,
) -> None:
    guarded(write_cell(tmp_path, "ddpo", 0), [True, True, True, False, False, False])
    guarded(write_cell(tmp_path, "ddpo", 1), [True] + [False] * 5)
    guarded(write_cell(tmp_path, "ddpo", 2), [True] * 6)
    last = last_kept(comparison(tmp_path).evals)
    steps = {(row.seed, row.split): row.step for row in last.itertuples()}
    assert steps == {
        (seed, split): step
        for seed, step in ((0, 40), (1, 0), (2, 100))
        for split in ("train", "unseen")
    }


def test_time_to_target_says_what_is_kept_and_what_never_got_there(tmp_path: Path) -> None:
    guarded(write_cell(tmp_path, "ddpo", 0), [True] + [False] * 5)
    sheet = tables.time_to_target(comparison(tmp_path))
    ours = row(sheet, "ddpo")
    assert ours["reached, reward alone"] == "1 of 1" and ours["TFLOP, reward alone"] == "24"
    assert ours["reached, guarded"] == "0 of 1" and ours["TFLOP, guarded"] == ">= 120"
    assert sheet and "judge at least -0.31" in sheet.note


def test_the_target_is_a_deviation_within_a_prompt_above_the_base_model(tmp_path: Path) -> None:
    write_cell(tmp_path, "ddpo", 0)
    pairs = np.array([[0.3 * math.cos(7 * i) for i in (2 * k, 2 * k + 1)] for k in range(10)])
    within = math.sqrt(np.var(pairs, axis=1, ddof=1).mean())
    assert target(comparison(tmp_path)) == pytest.approx(-2.2 + within)


def test_the_mean_of_all_runs_stands_beside_the_interquartile_mean(tmp_path: Path) -> None:
    cells = [write_cell(tmp_path, "ddpo", seed) for seed in range(5)]
    ours = row(tables.generalisation(comparison(tmp_path)), "ddpo")
    ends = sorted(final(cell, "unseen") for cell in cells)
    assert ours["mean of all runs, unseen"].value == pytest.approx(np.mean(ends))
    assert ours["jpeg, unseen"].value == pytest.approx(np.mean(ends[1:4]))
    assert ours["learnt"] == "no placebo"


def test_ablation_shows_only_what_differs(tmp_path: Path) -> None:
    for k in (1, 10):
        write_cell(tmp_path, "alignprop", 0, config={"lr": 1e-3, "truncation": {"k": k}})
    write_cell(tmp_path, "ddpo", 0, config={"clip": 1})
    sheet = tables.ablation(comparison(tmp_path))
    assert sheet and "truncation.k" in sheet.columns and "lr" not in sheet.columns
    assert [r["truncation.k"] for r in sheet.rows] == ["1", "10"]
    assert tables.ablation.__doc__


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


def test_published_values_have_a_source_and_stand_beside_ours(tmp_path: Path) -> None:
    for value in published.values():
        assert value["source"] and value["certainty"] in {"source", "figure", "quoted", "weak"}
    write_cell(tmp_path, "alignprop", 0)
    ours = comparison(tmp_path)
    assert published.beside(ours) == {}
    object.__setattr__(ours, "backbone", "sd15")
    object.__setattr__(ours, "reward", "aesthetic")
    assert published.beside(ours)["alignprop"] == "8.94 train (weak); 8.71 unseen (weak)"


def test_looks_are_constant_and_differ() -> None:
    few, many = looks(["ddpo", "zoo"]), looks([*GAIN, "zoo", "apple", "ddpo (k=1)"])
    assert few["ddpo"] == many["ddpo"]
    assert len({(look.color, look.marker) for look in many.values()}) == len(many)
    assert list(looks(["K = 10", "full", "K = 5"])) == ["K = 5", "K = 10", "full"]


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
