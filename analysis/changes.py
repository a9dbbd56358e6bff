"""What runs changed: values minus the base model's, from the same prompts and noise.

Everything that is estimated goes through here, picture by picture where pictures were recorded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.statistics import Estimate, Layout, estimate

#: A picture: its prompt, and how many pictures of that prompt stand before it.
Key = tuple[str, int]


def scores(pictures: Iterable[Mapping[str, Any]], column: str) -> dict[Key, float]:
    """A reward of every picture of one evaluation where it is finite; empty if not recorded."""
    found: dict[Key, float] = {}
    before: dict[str, int] = {}
    for picture in pictures:
        prompt = str(picture["prompt"])
        number = before[prompt] = before.get(prompt, -1) + 1
        value = float(picture["rewards"].get(column, math.nan))
        if math.isfinite(value):
            found[prompt, number] = value
    return found


def base_rows(evals: pd.DataFrame, split: str) -> pd.DataFrame:
    """The base model's evaluations on a split, one per cell."""
    return evals[(evals["step"] == 0) & (evals["split"] == split)].drop_duplicates("cell")


@dataclass(frozen=True, eq=False)
class Changes:
    """Of one value in one evaluation of several runs: ``layout`` has a row for each of ``seeds``,
    counted from ``start``, the base model's value on the same pictures."""

    seeds: list[int]
    layout: Layout
    start: float


def changes(rows: pd.DataFrame, base: pd.DataFrame, column: str) -> Changes:
    """How the value changed from the base model: one evaluation per cell, one split.

    ``base`` are evaluations of the base model; all are of one model on one noise, so any does. Runs
    with the same seed are averaged: a repeat is no new seed.
    """
    origin = scores(base.iloc[0]["per_image"], column) if len(base) else {}
    found = [scores(pictures, column) for pictures in rows["per_image"]]
    keys = [key for key in origin if all(key in pictures for pictures in found)]
    start = float(base[column].mean()) if len(base) else 0.0
    if keys:
        table = np.array([[pictures[key] for key in keys] for pictures in found])
        starts = np.array([origin[key] for key in keys])
        start += float(starts.mean() - np.mean([*origin.values()]))
    else:
        table, starts = rows[column].to_numpy(float).reshape(-1, 1), np.array([start])
    table = table.reshape(len(found), len(starts))
    of = rows["seed"].to_numpy(int)
    seeds = sorted(set(of.tolist()))
    averaged = np.array([(table[of == seed] - starts).mean(0) for seed in seeds])
    whole = bool(rows["whole"].all())
    layout = Layout(averaged.reshape(len(seeds), len(starts)), tuple(p for p, _ in keys), whole)
    return Changes(seeds, layout, start)


def change(rows: pd.DataFrame, base: pd.DataFrame, column: str) -> Estimate:
    """How much more a typical run has than the base model."""
    return estimate(changes(rows, base, column).layout)


def level(rows: pd.DataFrame, base: pd.DataFrame, column: str) -> Estimate:
    """What a typical run has; the interval is that of its change from the base model."""
    found = changes(rows, base, column)
    return estimate(found.layout).shifted(found.start)


def difference(one: pd.DataFrame, other: pd.DataFrame, base: pd.DataFrame, column: str) -> Estimate:
    """How much more a typical run of one has than one of the other, seed by seed."""
    ours, theirs = (changes(rows, base, column) for rows in (one, other))
    both = sorted(set(ours.seeds) & set(theirs.seeds))
    if not both or ours.layout.prompts != theirs.layout.prompts:
        return Estimate(value=float("nan"), seeds=0)
    mine = ours.layout.changes[[ours.seeds.index(seed) for seed in both]]
    yours = theirs.layout.changes[[theirs.seeds.index(seed) for seed in both]]
    whole = ours.layout.whole and theirs.layout.whole
    return estimate(Layout(mine - yours, ours.layout.prompts, whole))


def curve(rows: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Columns x, value, low, high: one row per evaluation of one method on one split.

    The k-th evaluations of all seeds belong together: they stand at the same share of the budget,
    though the optimizer step that crosses it differs. The curve ends where the shortest run does,
    so that no point is a mean over fewer seeds than its neighbours.
    """
    columns = list(dict.fromkeys(["cell", "seed", "step", "fraction", "per_image", "whole", x, y]))
    rows = rows[columns].sort_values(["step", "fraction"], kind="stable").reset_index(drop=True)
    base = rows[rows["step"] == 0].drop_duplicates("cell")
    places = list(rows.groupby("cell").indices.values())
    points: list[Sequence[float]] = []
    for k in range(min(map(len, places), default=0)):
        together = rows.iloc[[int(place[k]) for place in places]]
        typical = level(together, base, y)
        points.append((float(together[x].mean()), typical.value, typical.low, typical.high))
    return pd.DataFrame(points, columns=["x", "value", "low", "high"], dtype=float)
