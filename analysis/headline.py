"""How much less one method needs to reach the final reward of another."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from analysis.collect import Comparison
from analysis.curves import draw_lines, with_unit
from analysis.records import BUDGETS, SPLITS
from analysis.sheets import Sheet, Value
from analysis.statistics import (
    ENOUGH_SEEDS,
    NAN,
    RESAMPLES,
    Estimate,
    caption,
    interquartile_mean,
    last_rows,
    over_seeds,
    summarise,
)
from analysis.style import BASE, BASE_LINE, GREY, PAGE, Looks, finish, theme, used
from analysis.targets import base_rows

#: What is compared: data, compute and time.
KINDS = ("queries", "flops", "seconds")


def runs(comparison: Comparison, label: str, column: str, split: str) -> np.ndarray:
    """(runs, evaluations, 2): what a run had spent, and its reward there, from the base model on.

    As many evaluations as the shortest run has.
    """
    evals = comparison.evals
    rows = evals[(evals["label"] == label) & (evals["split"] == split)]
    rows = rows.sort_values(["step", "fraction"], kind="stable")
    found = [run[[column, comparison.reward]].to_numpy(float) for _, run in rows.groupby("cell")]
    shortest = min(map(len, found), default=0)
    return np.array([run[:shortest] for run in found]).reshape(len(found), shortest, 2)


def typical(sample: np.ndarray) -> np.ndarray:
    """(..., runs, evaluations, 2) to (..., evaluations, 2): one run for several.

    As everywhere, the interquartile mean from 5 runs on.
    """
    if sample.shape[-3] < ENOUGH_SEEDS:
        return np.asarray(sample.mean(-3))
    rewards = interquartile_mean(sample[..., 1], axis=-2)
    return np.stack([sample[..., 0].mean(-2), rewards], axis=-1)


def crossing(curve: np.ndarray, level: float) -> float:
    """What a run (evaluations, 2) had spent when it first had ``level``; infinite if it never had.

    Linear between evaluations; 0 if it starts there.
    """
    spent, reward = curve[:, 0], curve[:, 1]
    reached = np.flatnonzero(reward >= level)
    if not len(reached):
        return math.inf
    k = int(reached[0])
    if k == 0:
        return 0.0
    share = (level - reward[k - 1]) / (reward[k] - reward[k - 1])
    return float(spent[k - 1] + share * (spent[k] - spent[k - 1]))


def ratio(fast: np.ndarray, slow: np.ndarray) -> float:
    """What ``slow`` spent in all over what ``fast`` had spent when it first was as good.

    Both are one run (evaluations, 2). 0: it never was. Infinite: it was from the start, as ``slow``
    ended no higher than it began.
    """
    spent, level = slow[-1]
    paid = crossing(fast, level)
    return float(spent / paid) if paid else math.inf


def speedup(comparison: Comparison, fast: str, slow: str, kind: str, split: str) -> Estimate:
    """``ratio`` of the two methods' typical runs, for this kind of cost.

    From 5 seeds of each on with a percentile bootstrap interval, seeds of each method resampled.
    """
    ours, theirs = (runs(comparison, n, BUDGETS[kind][0], split) for n in (fast, slow))
    seeds = min(len(ours), len(theirs))
    if not ours.size or not theirs.size or np.isnan(ours).any() or np.isnan(theirs).any():
        return Estimate(value=NAN, seeds=seeds)
    value = ratio(typical(ours), typical(theirs))
    if seeds < ENOUGH_SEEDS:
        return Estimate(value=value, seeds=seeds)
    random = np.random.default_rng(0)
    drawn = [
        typical(sample[random.integers(len(sample), size=(RESAMPLES, len(sample)))])
        for sample in (ours, theirs)
    ]
    found = [ratio(*both) for both in zip(*drawn, strict=True)]
    low, high = np.quantile(found, [0.025, 0.975], method="nearest")
    return Estimate(value=value, low=float(low), high=float(high), seeds=seeds)


def sheet(comparison: Comparison, fast: str, slow: str) -> Sheet:
    """The final reward of ``slow``, and how much less ``fast`` needs for it."""
    last = last_rows(comparison.evals)
    rows: list[dict[str, Value]] = []
    for split, words in SPLITS.items():
        ends = last[(last["label"] == slow) & (last["split"] == split)]
        base = base_rows(comparison, split)[comparison.reward].mean()
        row: dict[str, Value] = {
            "prompts": words,
            f"{slow} ends at": over_seeds(ends, comparison.reward),
            "above the base model": summarise([v - base for v in ends[comparison.reward]]),
        }
        for kind in KINDS:
            row[f"{BUDGETS[kind][2]}, times less"] = speedup(comparison, fast, slow, kind, split)
        rows.append(row)
    note = (
        f"What {slow} spent in all, over what {fast} had spent at {slow}'s final "
        f"{comparison.reward}; linear between evaluations, of the typical run of each. 0: {fast} "
        f"never got there. inf: it was there from the start, as {slow} did not rise. "
        f"{caption(comparison.seeds())}"
    )
    styles = {column: ".3g" for column in rows[0] if column.endswith("times less")}
    return Sheet(title=comparison.title, note=note, columns=list(rows[0]), rows=rows, styles=styles)


def _in_words(times: Estimate, fast: str, slow: str) -> str:
    if math.isinf(times.value):
        return f"{slow} did not rise"
    if times.value == 0:
        return f"{fast} never got there"
    interval = "" if math.isnan(times.low) else f" [{times.low:.3g}, {times.high:.3g}]"
    return f"{times.value:.3g} times less{interval}"


def figure(comparison: Comparison, styles: Looks, fast: str, slow: str) -> Figure:
    """Reward on training prompts against each cost, with the level that both methods reach."""
    styles, train = used(styles, comparison.labels), comparison.evals
    train = train[train["split"] == "train"]
    with theme():
        drawn = Figure(figsize=(PAGE, 2.3), layout="constrained")
        for axes, kind in zip(drawn.subplots(1, len(KINDS), sharey=True), KINDS, strict=True):
            column, divisor, unit = BUDGETS[kind]
            rows = train.assign(**{unit: train[column] / divisor})
            base = base_rows(comparison, "train")[comparison.reward].mean()
            axes.axhline(base, color=GREY, linewidth=1, linestyle="--", zorder=1)
            draw_lines(axes, rows, unit, comparison.reward, styles)
            ours, theirs = (typical(runs(comparison, n, column, "train")) for n in (fast, slow))
            level, paid = theirs[-1, 1], crossing(ours, theirs[-1, 1])
            times = speedup(comparison, fast, slow, kind, "train")
            if math.isfinite(paid):
                ends = [paid / divisor, theirs[-1, 0] / divisor]
                axes.plot(ends, [level, level], color=GREY, lw=1, marker="|", zorder=4)
            axes.set_title(_in_words(times, fast, slow))
            axes.set(xlabel=unit, xlim=(0, None))
        drawn.axes[0].set_ylabel(with_unit(comparison, comparison.reward))
        note = (
            f"Training prompts. Grey: {slow}'s final reward, from where {fast} has it; above: how "
            "much less that took. "
        )
        return finish(
            drawn, styles, note + caption(comparison.seeds(), drawn=True), {BASE: BASE_LINE}
        )
