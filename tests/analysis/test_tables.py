"""Tables on synthetic runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import GAIN, comparison, final, guarded, write_cell

from analysis import tables
from analysis.sheets import Sheet
from analysis.statistics import Estimate


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


def test_time_to_target_says_what_is_kept_and_what_never_got_there(tmp_path: Path) -> None:
    guarded(write_cell(tmp_path, "ddpo", 0), [True] + [False] * 5)
    sheet = tables.time_to_target(comparison(tmp_path))
    ours = row(sheet, "ddpo")
    assert ours["reached, reward alone"] == "1 of 1" and ours["TFLOP, reward alone"] == "24"
    assert ours["reached, guarded"] == "0 of 1" and ours["TFLOP, guarded"] == ">= 120"
    assert sheet and "judge at least -0.31" in sheet.note


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
