"""One number, and how far to trust it, from a few runs.

What varies is the run (its seed) and what it was looked at with (prompts and pictures, which all
runs share). Both are resampled, each in turn, and their variances added; the interval is that error
times Student's t. ``python -m analysis.coverage`` measures how often such intervals hold the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

ENOUGH_SEEDS = 5
RESAMPLES = 2000
LEVEL = 0.95
NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """``value`` with a 95 % interval from ``low`` to ``high`` (NaN where there is none, infinite
    where an end is not known).

    ``seeds`` is how many independent runs, or prompts, it was made from; ``mean`` the mean of all
    runs, where ``value`` leaves some out. ``error`` and ``freedom`` are the standard error and its
    degrees of freedom. ``bound`` is "at least" or "at most" where no more than that is known.
    """

    value: float
    low: float = NAN
    high: float = NAN
    seeds: int
    mean: float = NAN
    error: float = NAN
    freedom: float = NAN
    bound: str = ""

    def shifted(self, by: float) -> Estimate:
        """The same, counted from elsewhere."""
        ends = {n: getattr(self, n) + by for n in ("value", "low", "high", "mean")}
        return replace(self, **ends)

    def p(self, above: float = 0.0) -> float:
        """How likely a value as far from ``above`` is, were that the truth: both sides, from
        Student's t. NaN without an interval."""
        return two_sided(self.value - above, self.error, self.freedom)


def two_sided(distance: float, error: float, freedom: float) -> float:
    """Student's p for a distance with this standard error; NaN without one."""
    if math.isnan(error) or math.isnan(distance):
        return NAN
    if error == 0:
        return float(distance == 0)
    return float(2 * stats.t.sf(abs(distance) / error, freedom))


def holm(ps: Sequence[float]) -> list[float]:
    """These p values, corrected for being several (Holm 1979); a NaN is no test and stays one.

    Those at most 0.05 are decided so that in 95 of 100 such families nothing is decided wrongly.
    """
    found, highest = list(map(float, ps)), 0.0
    tested = sorted((p, i) for i, p in enumerate(ps) if not math.isnan(p))
    for place, (p, i) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - place) * p))
        found[i] = highest
    return found


@dataclass(frozen=True, eq=False)
class Layout:
    """Changes of one value, (runs, pictures); all runs were looked at with the same pictures.

    ``prompts`` has one prompt per picture; it is empty, with one column, where only a value of all
    pictures together was recorded, so that their error is not known. ``whole``: these are all the
    prompts that are spoken of, so only pictures vary; else there could have been other prompts.
    """

    changes: np.ndarray
    prompts: tuple[str, ...] = ()
    whole: bool = False

    def runs(self) -> np.ndarray:
        """(runs,): the mean over pictures."""
        return np.asarray(self.changes.mean(1))


def values_of_runs(values: Sequence[float]) -> Layout:
    """One value per run and nothing about its pictures."""
    return Layout(np.asarray(values, dtype=float).reshape(-1, 1))


def estimate(layout: Layout) -> Estimate:
    """What a typical run gives.

    From 5 runs on: their interquartile mean (the mean without the lowest and the highest quarter,
    as Agarwal et al. 2021, arXiv 2108.13264, advise) with its interval. Below: the plain mean and
    no interval. A NaN is a diverged run and makes the result NaN: leaving it out would flatter the
    method.
    """
    return combined([(1.0, layout)], ENOUGH_SEEDS)


def between(one: Layout, other: Layout, enough: int = ENOUGH_SEEDS) -> Estimate:
    """What a typical run of one gives more than one of the other; runs are not paired, pictures
    are where both were looked at with the same."""
    return combined([(1.0, one), (-1.0, other)], enough)


def combined(parts: Sequence[tuple[float, Layout]], enough: int) -> Estimate:
    """Signed sum of typical runs. Parts with the same pictures are resampled with the same."""
    seeds = min((len(layout.changes) for _, layout in parts), default=0)
    if seeds == 0 or any(np.isnan(layout.changes).any() for _, layout in parts):
        return Estimate(value=NAN, seeds=seeds)
    mean = float(sum(sign * layout.runs().mean() for sign, layout in parts))
    if seeds < enough:
        return Estimate(value=mean, seeds=seeds, mean=mean)
    value = float(sum(sign * interquartile_mean(layout.runs()) for sign, layout in parts))
    errors = [_error_of_runs(layout.runs()) for _, layout in parts]
    errors += _errors_of_pictures(parts)
    error, freedom = total(errors)
    half = error * student(freedom)
    return Estimate(value=value, low=value - half, high=value + half, seeds=seeds, mean=mean,
                    error=error, freedom=freedom)  # fmt: skip


def total(errors: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Variances with their degrees of freedom, added: standard error and its degrees of freedom
    (Satterthwaite 1946)."""
    variance = sum(v for v, _ in errors)
    parts = sum(v**2 / freedom for v, freedom in errors if v > 0)
    return math.sqrt(variance), variance**2 / parts if parts > 0 else math.inf


def student(freedom: float) -> float:
    """How many standard errors a 95 % interval reaches to each side."""
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def _error_of_runs(values: np.ndarray) -> tuple[float, float]:
    """Variance of the interquartile mean over runs. Resampling n runs finds (n - 1) / n of it."""
    n = len(values)
    drawn = interquartile_mean(values[_resamples(n)])
    return float(drawn.var() * n / (n - 1)), n - 1


def _errors_of_pictures(parts: Sequence[tuple[float, Layout]]) -> list[tuple[float, float]]:
    """Variance over prompts and pictures: one for all parts that share them."""
    shared: dict[tuple[tuple[str, ...], bool], float | np.ndarray] = {}
    for sign, layout in parts:
        if len(layout.prompts) > 1:
            key = (layout.prompts, layout.whole)
            drawn = interquartile_mean(weights(*key)[0] @ layout.changes.T)
            shared[key] = shared.get(key, 0.0) + sign * drawn
    return [(float(np.var(drawn)), weights(*key)[1]) for key, drawn in shared.items()]


@lru_cache(maxsize=64)
def weights(prompts: tuple[str, ...], whole: bool) -> tuple[np.ndarray, int]:
    """(resamples, pictures): what each picture counts in a resample; and degrees of freedom.

    Prompts are drawn with all their pictures; if these are the ``whole`` list of prompts, pictures
    are drawn within each. Deviations from equal weights are stretched by sqrt(m / (m - 1)), as
    resampling m finds only (m - 1) / m of the variance.
    """
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    of = np.array([numbers[prompt] for prompt in prompts])
    sizes, random = np.bincount(of), np.random.default_rng(0)
    equal = 1 / len(prompts)
    if whole and (sizes > 1).all():
        found = np.empty((RESAMPLES, len(prompts)))
        for prompt, m in enumerate(sizes):
            times = random.multinomial(m, np.full(m, 1 / m), RESAMPLES)
            found[:, of == prompt] = equal + (times - 1) * equal * math.sqrt(m / (m - 1))
        return found, int((sizes - 1).sum())
    n = len(sizes)
    if n == 1:  # one prompt: its pictures are all there is to draw
        return weights(prompts, True) if len(prompts) > 1 else (np.ones((RESAMPLES, 1)), 1)
    times = random.multinomial(n, np.full(n, 1 / n), RESAMPLES)
    return equal + (times[:, of] - 1) * equal * math.sqrt(n / (n - 1)), n - 1


@lru_cache(maxsize=64)
def _resamples(n: int, number: int = 0) -> np.ndarray:
    """(resamples, n): which of n runs are drawn."""
    return np.random.default_rng([1, n, number]).integers(n, size=(RESAMPLES, n))


def stratified(tasks: Sequence[Sequence[float]]) -> Estimate:
    """What a typical run gives: one value per seed, for each of several tasks.

    As ``estimate``, of all runs together; seeds are resampled within each task.
    """
    samples = [np.asarray(task, dtype=float) for task in tasks]
    everything = np.concatenate(samples) if samples else np.empty(0)
    count = min((len(sample) for sample in samples), default=0)
    if count == 0 or np.isnan(everything).any():
        return Estimate(value=NAN, seeds=count)
    mean = float(everything.mean())
    if count < ENOUGH_SEEDS:
        return Estimate(value=mean, seeds=count, mean=mean)
    drawn = [s[_resamples(len(s), number)] for number, s in enumerate(samples)]
    freedom = len(everything) - len(samples)
    spread = interquartile_mean(np.concatenate(drawn, axis=1)).std()
    error = float(spread) * math.sqrt(len(everything) / freedom)
    value, half = float(interquartile_mean(everything)), error * student(freedom)
    return Estimate(value=value, low=value - half, high=value + half, seeds=count, mean=mean,
                    error=error, freedom=freedom)  # fmt: skip


def summarise(values: Sequence[float]) -> Estimate:
    """What a typical run gives, of one value per run; the error of its pictures is not in it."""
    return estimate(values_of_runs(values))


def interquartile_mean(sample: ArrayLike) -> np.ndarray:
    """Mean of the middle half along the last axis; rliable's IQM."""
    ordered = np.sort(np.asarray(sample, dtype=float), axis=-1)
    cut = ordered.shape[-1] // 4
    return np.asarray(ordered[..., cut : ordered.shape[-1] - cut].mean(-1))


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
    return _percentiles(samples, statistic, count)


def performance_profile(costs: Sequence[float], grid: Sequence[float]) -> np.ndarray:
    """Share of runs that had reached their target at each cost of ``grid``.

    ``costs`` has one cost per run, infinite for a run that never got there: those stay in the
    denominator, so that a method cannot gain by failing. Runs of all tasks count alike (Dolan and
    More 2002, arXiv cs/0102001, with absolute costs instead of ratios to the best method, so that
    no method's profile depends on the others).
    """
    values = np.asarray(costs, dtype=float)
    return (values[None, :] <= np.asarray(grid, dtype=float)[:, None]).mean(1)


def median_cost(costs: ArrayLike, ends: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Median along the last axis, and whether it is only known to be at least that.

    ``costs`` are infinite where a run had not got there when it ended, at ``ends``. Between two
    middle runs: their geometric mean.
    """
    costs, ends = np.broadcast_arrays(np.asarray(costs, float), np.asarray(ends, float))
    known = np.where(np.isfinite(costs), costs, ends)
    order = np.lexsort((known, np.isinf(costs)), axis=-1)
    n = costs.shape[-1]
    middle = order[..., (n - 1) // 2 : n // 2 + 1]
    value = np.exp(np.log(np.take_along_axis(known, middle, -1)).mean(-1))
    return value, np.isinf(np.take_along_axis(costs, middle, -1)).any(-1)


def win_rate(wins: float, count: int) -> Estimate:
    """Share of ``count`` answers won (ties count one half), with the 95 % Wilson interval."""
    if count == 0:
        return Estimate(value=NAN, seeds=0)
    share, z = wins / count, float(stats.norm.ppf(0.975))
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low, high = max(0.0, float(centre - half)), min(1.0, float(centre + half))
    return Estimate(value=share, low=low, high=high, seeds=count)


def _percentiles(
    samples: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], count: int
) -> Estimate:
    interval = stats.bootstrap(
        tuple(samples),
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    value, low, high = float(statistic(*samples)), float(interval.low), float(interval.high)
    return Estimate(value=value, low=low, high=high, seeds=count)


def last_rows(evals: pd.DataFrame) -> pd.DataFrame:
    """The last evaluation of each cell on each split, without the base model's."""
    tuned = evals[evals["step"] > 0]
    return tuned.loc[tuned.groupby(["cell", "split"])["step"].idxmax()]


def counted(seeds: Sequence[int]) -> str:
    """How many seeds the methods have, in words."""
    fewest, most = min(seeds), max(seeds)
    count = f"{fewest} seed{'' if fewest == 1 else 's'}"
    if fewest != most:
        count = f"{fewest}-{most} seeds"
    return f"{count} per method"


def caption(seeds: Sequence[int], drawn: bool = False) -> str:
    """How to read values made from so many seeds per method; ``drawn``: one by one, too."""
    fewest, most, count = min(seeds), max(seeds), counted(seeds)
    if most == 1:
        return "One seed per method: every value is a single run, and differences may be chance."
    if fewest >= ENOUGH_SEEDS:
        return (
            f"{count}: interquartile mean, 95 % interval over seeds, prompts and pictures "
            "(measures of many pictures together: over seeds alone)."
        )
    every = ", every seed drawn" if drawn else ""
    mixed = "" if most < ENOUGH_SEEDS else " (interquartile mean and 95 % interval from 5 seeds on)"
    return f"{count}: mean{every}{mixed}. Of fewer than {ENOUGH_SEEDS} seeds no interval is given."
