"""One number, and how far to trust it, from a few runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

ENOUGH_SEEDS = 5
RESAMPLES = 2000
NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """``value`` with a 95 % interval from ``low`` to ``high`` (NaN where there is none).

    ``seeds`` is how many independent runs, or prompts, it was made from.
    """

    value: float
    low: float = NAN
    high: float = NAN
    seeds: int


def stratified(tasks: Sequence[Sequence[float]]) -> Estimate:
    """What a typical run gives: one value per seed, for each of several tasks.

    From 5 seeds per task on: the interquartile mean of all runs (the mean without the lowest and
    highest quarter) and its percentile bootstrap interval, resampling seeds within each task, as
    Agarwal et al. 2021 (arXiv 2108.13264) advise: were the training repeated with other seeds, the
    interval would hold the true value about 95 times in 100 from 10 seeds on, 91 times with 5
    (1,000 simulated samples of one normal task). Below: the plain mean and no
    interval, because a bootstrap of so few values covers the truth far less often than it says. A
    NaN is a diverged run and makes the result NaN: leaving it out would flatter the method.
    """
    return _stratified(tuple(tuple(map(float, task)) for task in tasks))


@lru_cache(maxsize=100_000)  # several figures and tables ask for the same numbers
def _stratified(tasks: tuple[tuple[float, ...], ...]) -> Estimate:
    samples = [np.asarray(task) for task in tasks]
    everything = np.concatenate(samples) if samples else np.empty(0)
    count = min((len(sample) for sample in samples), default=0)
    if count == 0 or np.isnan(everything).any():
        return Estimate(value=NAN, seeds=count)
    if count < ENOUGH_SEEDS:
        return Estimate(value=float(everything.mean()), seeds=count)

    def statistic(*parts: np.ndarray, axis: int = -1) -> np.ndarray:
        return interquartile_mean(np.concatenate(parts, axis=axis), axis=axis)

    return _bootstrapped(samples, statistic, count)


def summarise(values: Sequence[float]) -> Estimate:
    """What a typical run of one task gives; see ``stratified``."""
    return stratified([values])


def interquartile_mean(sample: ArrayLike, axis: int = -1) -> np.ndarray:
    """Mean of the middle half along ``axis``; rliable's IQM."""
    return np.asarray(stats.trim_mean(sample, 0.25, axis=axis))


def probability_of_improvement(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]
) -> Estimate:
    """How often a run of ours beats a run of theirs on the same task, both seeds drawn at random.

    One list of seeds per task. Ties count one half; the mean over tasks of the Mann-Whitney
    U statistic / (n m). 0.5 means no difference; it says nothing about the size of one. The
    interval, from 5 seeds on both sides on, resamples the seeds of each side within each task.
    """
    samples = [np.asarray(task, dtype=float) for task in (*ours, *theirs)]
    count = min((len(sample) for sample in samples), default=0)
    if count == 0 or any(np.isnan(sample).any() for sample in samples):
        return Estimate(value=NAN, seeds=count)

    def statistic(*parts: np.ndarray, axis: int = -1) -> np.ndarray:
        half = len(parts) // 2
        wins = []
        for x, y in zip(parts[:half], parts[half:], strict=True):
            x, y = np.moveaxis(x, axis, -1)[..., :, None], np.moveaxis(y, axis, -1)[..., None, :]
            wins.append(((x > y) + 0.5 * (x == y)).mean((-2, -1)))
        return np.mean(wins, axis=0)

    if count < ENOUGH_SEEDS:
        return Estimate(value=float(statistic(*samples)), seeds=count)
    return _bootstrapped(samples, statistic, count)


def paired_difference(by_prompt: Sequence[Sequence[float]]) -> Estimate:
    """How much better these runs are on prompts like these, at the same noise.

    One list of differences (ours minus theirs, picture by picture) per prompt; the mean over
    prompts. The interval resamples prompts, so it speaks of other prompts and not of other seeds;
    NaN below 5 prompts.
    """
    means = np.asarray([np.mean(values) for values in by_prompt], dtype=float)
    if len(means) < ENOUGH_SEEDS or np.isnan(means).any():
        value = float(means.mean()) if len(means) else NAN
        return Estimate(value=value, seeds=len(means))
    return _bootstrapped([means], lambda x, axis=-1: np.mean(x, axis=axis), len(means))


def performance_profile(costs: Sequence[float], grid: Sequence[float]) -> np.ndarray:
    """Share of runs that had reached their target at each cost of ``grid``.

    ``costs`` has one cost per run, infinite for a run that never got there: those stay in the
    denominator, so that a method cannot gain by failing. Runs of all tasks count alike (Dolan and
    More 2002, arXiv cs/0102001, with absolute costs instead of ratios to the best method, so that
    no method's profile depends on the others).
    """
    values = np.asarray(costs, dtype=float)
    return (values[None, :] <= np.asarray(grid, dtype=float)[:, None]).mean(1)


def win_rate(wins: float, count: int) -> Estimate:
    """Share of ``count`` answers won (ties count one half), with the 95 % Wilson interval."""
    if count == 0:
        return Estimate(value=NAN, seeds=0)
    share, z = wins / count, float(stats.norm.ppf(0.975))
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low, high = max(0.0, float(centre - half)), min(1.0, float(centre + half))
    return Estimate(value=share, low=low, high=high, seeds=count)


def _bootstrapped(
    samples: Sequence[np.ndarray], statistic: Callable[..., Any], count: int
) -> Estimate:
    interval = stats.bootstrap(
        tuple(samples),
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=0.95,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    value, low, high = float(statistic(*samples)), float(interval.low), float(interval.high)
    return Estimate(value=value, low=low, high=high, seeds=count)


def over_seeds(rows: pd.DataFrame, column: str) -> Estimate:
    """Summarise ``column``, first averaged within each seed so that a repeat is no new seed."""
    return summarise(_by_seed(rows["seed"].to_numpy(float), rows[column].to_numpy(float)))


def _by_seed(seeds: np.ndarray, values: np.ndarray) -> list[float]:
    return sorted(float(values[seeds == seed].mean()) for seed in np.unique(seeds))


def curve(rows: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Columns x, value, low, high: one row per evaluation of one method on one split.

    The k-th evaluations of all seeds belong together: they stand at the same share of the budget,
    though the optimizer step that crosses it differs. The curve ends where the shortest run does,
    so that no point is a mean over fewer seeds than its neighbours.
    """
    rows = rows.sort_values(["step", "fraction"], kind="stable")
    runs = [
        run.to_numpy(float) for _, run in rows.set_index("cell")[["seed", x, y]].groupby("cell")
    ]
    points: list[tuple[float, ...]] = []
    for together in zip(*runs, strict=False):
        seeds, spent, values = np.stack(together, axis=1)
        typical = summarise(_by_seed(seeds, values))
        points.append((float(spent.mean()), typical.value, typical.low, typical.high))
    return pd.DataFrame(points, columns=["x", "value", "low", "high"], dtype=float)


def last_rows(evals: pd.DataFrame) -> pd.DataFrame:
    """The last evaluation of each cell on each split, without the base model's."""
    tuned = evals[evals["step"] > 0]
    return tuned.loc[tuned.groupby(["cell", "split"])["step"].idxmax()]


def counted(seeds: Sequence[int]) -> str:
    """How many seeds the methods have, in words."""
    fewest, most = min(seeds), max(seeds)
    count = f"{fewest} seed{'s' * (fewest != 1)}" if fewest == most else f"{fewest}-{most} seeds"
    return f"{count} per method"


def caption(seeds: Sequence[int], drawn: bool = False) -> str:
    """How to read values made from so many seeds per method; ``drawn``: one by one, too."""
    fewest, most, count = min(seeds), max(seeds), counted(seeds)
    if most == 1:
        return "One seed per method: every value is a single run, and differences may be chance."
    if fewest >= ENOUGH_SEEDS:
        return f"{count}: interquartile mean, 95 % bootstrap interval over seeds."
    mixed = "" if most < ENOUGH_SEEDS else " (interquartile mean and 95 % interval from 5 seeds on)"
    return (
        f"{count}: mean{', every seed drawn' * drawn}{mixed}. Intervals from fewer than "
        f"{ENOUGH_SEEDS} seeds under-cover, so none is given."
    )
