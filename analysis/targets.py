"""What a run cost to reach a target, and its gain in units that tasks share.

Everything is measured against the base model on the same noise, never against another method, so
that adding a method changes nobody's score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.collect import Comparison

#: A target is half a standard deviation of the base model's pictures up: what Cohen (1988) calls
#: a medium effect. A held-out reward may fall by as much.
EFFECT = 0.5
#: The share of the base model's diversity that must be left.
DIVERSITY_LEFT = 0.75


@dataclass(frozen=True)
class Target:
    """A level of the train reward, and the floors of everything else by column."""

    level: float
    floors: dict[str, float]


def spread(rows: pd.DataFrame, reward: str) -> float:
    """Standard deviation of a reward over the pictures of one evaluation; NaN without pictures."""
    pictures = rows.iloc[0]["per_image"]
    values = [picture["rewards"][reward] for picture in pictures]
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def base_rows(comparison: Comparison, split: str) -> pd.DataFrame:
    """The base model's evaluations on a split, one per cell."""
    evals = comparison.evals
    return evals[(evals["step"] == 0) & (evals["split"] == split)].drop_duplicates("cell")


def target(comparison: Comparison) -> Target | None:
    """The target on training prompts, or None without a base model to start from."""
    base = base_rows(comparison, "train")
    if base.empty:
        return None
    level = float(base[comparison.reward].mean() + EFFECT * spread(base, comparison.reward))
    floors = {n: float(base[n].mean() - EFFECT * spread(base, n)) for n in comparison.held_out}
    floors["diversity"] = float(DIVERSITY_LEFT * base["diversity"].mean())
    known = {name: floor for name, floor in floors.items() if not math.isnan(floor)}
    return None if math.isnan(level) else Target(level, known)


def cost(run: pd.DataFrame, column: str, reward: str, goal: Target, guarded: bool) -> float:
    """What a run (its evaluations on one split) had spent at the first evaluation at the target.

    Infinite if it never got there. ``guarded``: evaluations below a floor do not count.
    """
    reached = run[reward] >= goal.level
    for name, floor in goal.floors.items() if guarded else ():
        reached &= run[name] >= floor
    return float(run.loc[reached, column].min()) if reached.any() else math.inf


def costs(
    comparison: Comparison, label: str, column: str, goal: Target, guarded: bool
) -> list[float]:
    """``cost`` of every run of a method on training prompts."""
    evals = comparison.evals
    rows = evals[(evals["label"] == label) & (evals["split"] == "train")]
    runs = [run for _, run in rows.groupby("cell")]
    return [cost(run, column, comparison.reward, goal, guarded) for run in runs]


def gains(comparison: Comparison, last: pd.DataFrame, split: str) -> list[float]:
    """Gain of each row of ``last`` over the base model, in standard deviations of its pictures."""
    base = base_rows(comparison, split)
    if base.empty:
        return []
    unit = spread(base, comparison.reward)
    rows = last[last["split"] == split]
    by_seed = rows.groupby("seed")[comparison.reward].mean()
    return [float(v) for v in (by_seed - base[comparison.reward].mean()) / unit]


def at_cost(run: pd.DataFrame, column: str, value: str, level: float) -> float:
    """``value`` of the last evaluated checkpoint that cost at most ``level``.

    NaN for more than the run has spent: what it would have become is not known.
    """
    if level > run[column].max():
        return math.nan
    rows = run[run[column] <= level].sort_values([column, "fraction"])
    return float(rows[value].iloc[-1])
