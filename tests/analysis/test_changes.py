"""Changes from the base model with known answers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import write_cell

from analysis.changes import change, changes, curve, difference, level
from analysis.collect import collect


def test_curve_ends_where_the_shortest_run_does(tmp_path: Path) -> None:
    write_cell(tmp_path, "ddpo", 0, evals=6)
    write_cell(tmp_path, "ddpo", 1, evals=3, finished=False)
    [comparison] = collect(tmp_path).comparisons
    train = comparison.evals[comparison.evals["split"] == "train"]
    assert len(curve(train, "spent", "jpeg")) == 3


def evaluation(seed: int, values: dict[str, list[float]]) -> dict[str, object]:
    """One run's evaluation: a reward of every picture of each prompt."""
    scores = [(prompt, score) for prompt, several in values.items() for score in several]
    pictures = [{"prompt": prompt, "rewards": {"r": score}} for prompt, score in scores]
    mean = np.mean([score for _, score in scores])
    return {"cell": f"cell {seed}", "seed": seed, "whole": False, "per_image": pictures, "r": mean}


def test_changes_are_of_shared_pictures_and_a_repeat_is_no_new_seed() -> None:
    base = pd.DataFrame([evaluation(0, {"cat": [0, 1], "dog": [5]})])
    rows = pd.DataFrame(
        [
            evaluation(3, {"cat": [1, 3], "dog": [6]}),
            evaluation(3, {"cat": [3, 5], "dog": [8]}),
            evaluation(1, {"cat": [2, 1]}),
        ]
    )
    found = changes(rows, base, "r")
    assert found.seeds == [1, 3] and found.layout.prompts == ("cat", "cat")
    assert found.layout.changes.tolist() == [[2, 0], [2, 3]]
    assert found.start == pytest.approx(0.5)  # the base model's on the two cats alone
    assert change(rows, base, "r").value == pytest.approx(1.75)
    assert level(rows, base, "r").value == pytest.approx(2.25)


def test_a_difference_is_taken_seed_by_seed() -> None:
    base = pd.DataFrame([evaluation(0, {"cat": [0, 1]})])
    one = pd.DataFrame([evaluation(s, {"cat": [10.0 * s + 1, 10.0 * s]}) for s in (2, 0, 1, 99)])
    other = pd.DataFrame([evaluation(s, {"cat": [10.0 * s, 10.0 * s]}) for s in (0, 1, 2)])
    apart = difference(one, other, base, "r")
    assert apart.value == pytest.approx(0.5) and apart.seeds == 3
    strangers = difference(one[one["seed"] == 99], other, base, "r")
    assert math.isnan(strangers.value) and strangers.seeds == 0
