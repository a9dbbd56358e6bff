"""One number, and how far to trust it, from a few seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

ENOUGH_SEEDS = 5
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """``value`` with a 95 % interval from ``low`` to ``high`` (NaN with too few seeds)."""

    value: float
    low: float
    high: float
    seeds: int


def summarise(values: Sequence[float]) -> Estimate:
    """Summarise one value per seed.

    From 5 seeds on: the interquartile mean (the mean without the lowest and highest quarter) and
    its percentile bootstrap interval, as Agarwal et al. 2021 (arXiv 2108.13264) advise, resampling
    seeds. Below: the plain mean and no interval, because a bootstrap of so few values covers the
    truth far less often than it says. A NaN is a diverged run and makes the result NaN: leaving it
    out would flatter the method.
    """
    sample = np.asarray(values, dtype=float)
    nan = float("nan")
    if sample.size == 0 or np.isnan(sample).any():
        return Estimate(value=nan, low=nan, high=nan, seeds=sample.size)
    if sample.size < ENOUGH_SEEDS:
        return Estimate(value=float(sample.mean()), low=nan, high=nan, seeds=sample.size)
    interval = stats.bootstrap(
        (sample,),
        interquartile_mean,
        n_resamples=RESAMPLES,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    value = float(interquartile_mean(sample))
    return Estimate(
        value=value, low=float(interval.low), high=float(interval.high), seeds=sample.size
    )


def interquartile_mean(sample: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half along ``axis``."""
    return np.asarray(stats.trim_mean(sample, 0.25, axis=axis))


def over_seeds(rows: pd.DataFrame, column: str) -> Estimate:
    """Summarise ``column``, first averaged within each seed so that a repeat is no new seed."""
    return summarise(rows.groupby("seed")[column].mean(skipna=False).tolist())


def curve(rows: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Columns x, value, low, high: one row per evaluation of one method on one split.

    The k-th evaluations of all seeds belong together: they stand at the same share of the budget,
    though the optimizer step that crosses it differs. The curve ends where the shortest run does,
    so that no point is a mean over fewer seeds than its neighbours.
    """
    rows = rows.sort_values("step", kind="stable")
    rank = rows.groupby("cell").cumcount()
    shortest = rows.groupby("cell").size().min()
    points: list[tuple[float, ...]] = []
    for _, group in rows.groupby(rank):
        if len(points) < shortest:
            at, y_at = summarise(group[x].tolist()).value, over_seeds(group, y)
            points.append((at, y_at.value, y_at.low, y_at.high))
    return pd.DataFrame(points, columns=["x", "value", "low", "high"], dtype=float)


def last_rows(evals: pd.DataFrame) -> pd.DataFrame:
    """The last evaluation of each cell on each split, without the base model's."""
    tuned = evals[evals["step"] > 0]
    return tuned.loc[tuned.groupby(["cell", "split"])["step"].idxmax()]


def caption(seeds: Sequence[int]) -> str:
    """How to read values made from so many seeds per method."""
    fewest, most = min(seeds), max(seeds)
    count = f"{fewest} seed{'s' * (fewest != 1)}" if fewest == most else f"{fewest}-{most} seeds"
    if most == 1:
        return "One seed per method: every value is a single run, and differences may be chance."
    if fewest >= ENOUGH_SEEDS:
        return f"{count} per method: interquartile mean, 95 % bootstrap interval over seeds."
    mixed = "" if most < ENOUGH_SEEDS else " (interquartile mean and 95 % interval from 5 seeds on)"
    return (
        f"{count} per method: mean, every seed drawn{mixed}. Intervals from fewer than "
        f"{ENOUGH_SEEDS} seeds under-cover, so none is given."
    )
