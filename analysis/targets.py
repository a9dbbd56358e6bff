"""What a run cost to reach a target, and its gain in units that tasks share.

Everything is measured against the base model on the same noise, never against another method, so
that adding a method changes nobody's score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.changes import base_rows, changes
from analysis.collect import Comparison
from analysis.statistics import last_rows

#: A target is so many deviations within a prompt up: one is what the best of four of the base
#: model's pictures of a prompt has more than their mean.
EFFECT = 1.0


def deviation(pictures: Sequence[Mapping[str, Any]], reward: str) -> float:
    """Standard deviation of a reward between pictures of one prompt, pooled over the prompts.

    NaN if no prompt has two pictures.
    """
    by_prompt: dict[str, list[float]] = {}
    for picture in pictures:
        by_prompt.setdefault(picture["prompt"], []).append(float(picture["rewards"][reward]))
    apart = [np.asarray(values) - np.mean(values) for values in by_prompt.values()]
    freedom = len(pictures) - len(by_prompt)
    return math.sqrt(sum(float((a**2).sum()) for a in apart) / freedom) if freedom else math.nan


def unit(comparison: Comparison, split: str, column: str) -> float:
    """The deviation within a prompt of the base model's pictures; NaN if it is not known."""
    base = base_rows(comparison.evals, split)
    if base.empty or any(column not in p["rewards"] for p in base.iloc[0]["per_image"]):
        return math.nan
    return deviation(base.iloc[0]["per_image"], column)


def target(comparison: Comparison) -> float | None:
    """The target on training prompts; None without a base model to start from, or without two
    pictures of a prompt."""
    base = base_rows(comparison.evals, "train")
    size = unit(comparison, "train", comparison.reward)
    if base.empty or math.isnan(size):
        return None
    return float(base[comparison.reward].mean() + EFFECT * size)


def guarded(evals: pd.DataFrame) -> bool:
    """Whether these runs had a guard."""
    return bool(evals["kept"].notna().any())


def floors(evals: pd.DataFrame) -> str:
    """The guard's floors on training prompts, in words."""
    known = [f for f in evals.loc[evals["split"] == "train", "floors"] if f]
    return ", ".join(f"{n} at least {v:.3g}" for n, v in (known[0] if known else {}).items())


def last_kept(evals: pd.DataFrame) -> pd.DataFrame:
    """The last evaluation of each cell on each split that the guard keeps; the base model's if it
    keeps none. Without a guard the last there is."""
    fine = evals[evals["kept"].ne(False) | (evals["step"] == 0)]
    last = last_rows(fine)
    trained = set(evals.loc[evals["step"] > 0, "cell"])
    nothing = fine[fine["cell"].isin(trained - set(last["cell"]))]
    return pd.concat([last, nothing.drop_duplicates(["cell", "split"])])


def cost(run: pd.DataFrame, column: str, reward: str, goal: float, guard: bool) -> float:
    """What a run (its evaluations on one split) had spent at the first evaluation at the target.

    Infinite if it never got there. ``guard``: evaluations that it does not keep do not count.
    """
    reached = run[reward] >= goal
    if guard:
        reached &= run["kept"].ne(False)
    return float(run.loc[reached, column].min()) if reached.any() else math.inf


def costs(comparison: Comparison, label: str, column: str, goal: float, guard: bool) -> list[float]:
    """``cost`` of every run of a method on training prompts."""
    evals = comparison.evals
    rows = evals[(evals["label"] == label) & (evals["split"] == "train")]
    runs = [run for _, run in rows.groupby("cell")]
    return [cost(run, column, comparison.reward, goal, guard) for run in runs]


def ends(comparison: Comparison, label: str, column: str) -> list[float]:
    """What every run of a method had spent in all."""
    evals = comparison.evals
    rows = evals[(evals["label"] == label) & (evals["split"] == "train")]
    return [float(run[column].max()) for _, run in rows.groupby("cell")]


def gains(comparison: Comparison, last: pd.DataFrame, split: str) -> list[float]:
    """Gain of each row of ``last`` over the base model, in its deviations within a prompt."""
    base = base_rows(comparison.evals, split)
    size = unit(comparison, split, comparison.reward)
    rows = last[last["split"] == split]
    if base.empty or rows.empty or math.isnan(size):
        return []
    return [float(v) / size for v in changes(rows, base, comparison.reward).layout.runs()]


def at_cost(run: pd.DataFrame, column: str, level: float) -> pd.DataFrame:
    """The last evaluated checkpoint (one row) that cost at most ``level``.

    No row for more than the run has spent: what it would have become is not known.
    """
    if level > run[column].max():
        return run.iloc[:0]
    return run[run[column] <= level].sort_values([column, "fraction"]).iloc[[-1]]
