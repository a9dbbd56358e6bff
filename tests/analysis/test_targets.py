"""Targets and costs with known answers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import comparison, final, guarded, write_cell

from analysis.targets import at_cost, cost, gains, last_kept, target


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


def test_the_target_is_a_deviation_within_a_prompt_above_the_base_model(tmp_path: Path) -> None:
    write_cell(tmp_path, "ddpo", 0)
    pairs = np.array([[0.3 * math.cos(7 * i) for i in (2 * k, 2 * k + 1)] for k in range(10)])
    within = math.sqrt(np.var(pairs, axis=1, ddof=1).mean())
    assert target(comparison(tmp_path)) == pytest.approx(-2.2 + within)


def test_a_gain_is_counted_in_deviations_within_a_prompt(tmp_path: Path) -> None:
    cell = write_cell(tmp_path, "ddpo", 0)
    found = comparison(tmp_path)
    size = target(found) + 2.2  # one deviation above the base model
    [gain] = gains(found, last_kept(found.evals), "train")
    assert gain == pytest.approx((final(cell) + 2.2) / size)
