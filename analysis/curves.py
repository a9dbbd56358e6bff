"""The figures about runs. Each takes one comparison and the looks of all methods."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import targets
from analysis.changes import curve
from analysis.collect import Comparison
from analysis.records import BUDGETS, MEASURES, SPLITS
from analysis.statistics import (
    ENOUGH_SEEDS,
    caption,
    counted,
    performance_profile,
)
from analysis.style import (
    BASE,
    BASE_LINE,
    BASE_STAR,
    COLUMN,
    GREY,
    PAGE,
    Looks,
    finish,
    theme,
    used,
)

COSTS = [BUDGETS[kind] for kind in ("steps", "queries", "flops", "seconds")]


def reward_curve(comparison: Comparison, styles: Looks) -> Figure:
    """Reported train reward against the budget spent, on training and on unseen prompts."""
    return _curves(
        comparison,
        styles,
        [(split, "spent", f"budget spent ({comparison.budget_unit})") for split in SPLITS],
        (1, 2),
    )


def cost_curves(comparison: Comparison, styles: Looks) -> Figure:
    """Reward on training prompts against optimizer steps, reward queries, FLOPs and seconds."""
    frame = comparison.evals.assign(**{n: comparison.evals[c] / d for c, d, n in COSTS})
    panels = [("train", name, name) for _, _, name in COSTS]
    return _curves(comparison, styles, panels, (2, 2), frame)


def _curves(
    comparison: Comparison,
    styles: Looks,
    panels: list[tuple[str, str, str]],  # split, column, axis label
    shape: tuple[int, int],
    frame: pd.DataFrame | None = None,
) -> Figure:
    styles, evals = used(styles, comparison.labels), comparison.evals if frame is None else frame
    splits = {split for split, _, _ in panels}
    with theme():
        figure = Figure(figsize=(PAGE, 2.3 * shape[0]), layout="constrained")
        grid = figure.subplots(*shape, squeeze=False, sharey=True)
        for (split, column, name), axes in zip(panels, grid.flat, strict=True):
            rows = evals[evals["split"] == split]
            _base_line(axes, rows, comparison.reward)
            draw_lines(axes, rows, column, comparison.reward, styles)
            axes.set(xlabel=name, xlim=(0, None))
            if len(splits) > 1:
                axes.set_title(f"{SPLITS[split]} prompts")
        for axes in grid[:, 0]:
            axes.set_ylabel(with_unit(comparison, comparison.reward))
        note = "Training prompts. " if splits == {"train"} else ""
        note += caption(comparison.seeds(), drawn=True)
        return finish(figure, styles, note, {BASE: BASE_LINE})


def overoptimisation(comparison: Comparison, styles: Looks) -> Figure:
    """Held-out rewards and what a reward hides, against the train reward, on training prompts."""
    names = [n for n in (*comparison.held_out, *MEASURES) if comparison.evals[n].notna().any()]
    rows, styles = _split(comparison, "train"), used(styles, comparison.labels)
    lines = math.ceil(len(names) / 2)
    with theme():
        figure = Figure(figsize=(PAGE, 2.2 * lines), layout="constrained")
        grid = figure.subplots(lines, 2, squeeze=False)
        for axes in grid.flat[len(names) :]:
            axes.set_axis_off()
        for name, axes in zip(names, grid.flat, strict=False):
            draw_lines(axes, rows, comparison.reward, name, styles, last=True)
            _base_star(axes, rows, comparison.reward, name)
            axes.set(
                xlabel=with_unit(comparison, comparison.reward), ylabel=with_unit(comparison, name)
            )
        typical = "interquartile means" if min(comparison.seeds()) >= ENOUGH_SEEDS else "means"
        note = (
            "Training prompts. Paths run from the base model to the last checkpoint (large); "
            f"faint: where each seed ended. {counted(comparison.seeds())}, {typical}, no intervals."
        )
        return finish(figure, styles, note, {BASE: BASE_STAR})


def pareto(comparison: Comparison, styles: Looks) -> Figure:
    """Reward against diversity: every evaluated checkpoint, and those that none beats in both."""
    rows, styles = _split(comparison, "unseen"), used(styles, comparison.labels)
    with theme():
        figure = Figure(figsize=(COLUMN, 2.3), layout="constrained")
        axes = figure.subplots()
        x, y = comparison.reward, "diversity"
        for label, look in styles.items():
            mine = rows[(rows["label"] == label) & (rows["step"] > 0)]
            last = mine.groupby("cell").tail(1)
            axes.plot(mine[x], mine[y], look.marker, color=look.color, ms=3.5, alpha=0.55, mew=0)
            axes.plot(last[x], last[y], look.marker, color=look.color, ms=8, mec="white")
        _base_star(axes, rows, x, y)
        _edge(axes, front(rows[[x, y]].dropna().to_numpy()))
        axes.set(xlabel=with_unit(comparison, x), ylabel=with_unit(comparison, y))
        note = (
            "Unseen prompts, every evaluation of every seed, the last large. No checkpoint is "
            f"beyond the line. {counted(comparison.seeds())}."
        )
        extra = {BASE: BASE_STAR, "Pareto front": Line2D([], [], color=GREY, lw=0.9)}
        return finish(figure, styles, note, extra)


def front(points: np.ndarray) -> np.ndarray:
    """The points (n, 2) that no other point equals or beats in both coordinates, by the first."""
    kept: list[np.ndarray] = []
    for point in sorted(points.tolist(), key=lambda p: (-p[0], -p[1])):
        if not kept or point[1] > kept[-1][1]:
            kept.append(np.asarray(point))
    return np.asarray(kept[::-1]).reshape(-1, 2)


def _edge(axes: Axes, best: np.ndarray) -> None:
    """The edge of what ``best`` (n, 2), a front, equals or beats; it goes on to the axes."""
    if len(best):
        left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
        x, y = [left, *best[:, 0], best[-1, 0]], [best[0, 1], *best[:, 1], bottom]
        axes.step(x, y, where="pre", color=GREY, lw=0.9, zorder=1)
        axes.set(xlim=(left, None), ylim=(bottom, None))


def time_to_target(comparison: Comparison, styles: Looks) -> Figure | None:
    """Share of runs that had reached the target, against what they had spent.

    None without a target.
    """
    goal = targets.target(comparison)
    if goal is None:
        return None
    styles = used(styles, sorted(set(comparison.evals["label"])))
    column, divisor, unit = BUDGETS["flops"]
    end = comparison.evals[column].max() / divisor or 1.0
    grid = np.linspace(0, end, 400)
    guards = (False, True) if targets.guarded(comparison.evals) else (False,)
    with theme():
        figure = Figure(figsize=(COLUMN, 2.3), layout="constrained")
        axes = figure.subplots()
        for number, (label, look) in enumerate(styles.items()):
            shift = 0.012 * (number - (len(styles) - 1) / 2)  # lines at 0 and 1 stay apart
            for guard in guards:
                costs = targets.costs(comparison, label, column, goal, guard)
                found = np.asarray(costs) / divisor
                share = performance_profile(found.tolist(), grid.tolist())
                thick = guard == guards[-1]
                style: dict[str, Any] = {"lw": 1.8} if thick else {"lw": 0.8, "alpha": 0.6}
                axes.plot(
                    grid,
                    share + shift,
                    color=look.color,
                    ls=look.linestyle,
                    **style,
                    drawstyle="steps-post",
                )
                if thick:
                    reached = found[np.isfinite(found)]
                    at = performance_profile(found.tolist(), reached.tolist()) + shift
                    axes.plot(reached, at, look.marker, color=look.color, ms=5, mec="white")
        axes.set(xlabel=f"spent ({unit})", ylabel="share of runs at the target", ylim=(-0.06, 1.06))
        both = f"Thick: with {targets.floors(comparison.evals)}; thin: reward alone."
        note = (
            f"Target: {comparison.reward} {goal:.4g} on training prompts. "
            f"{both if len(guards) > 1 else 'These runs had no guard.'} Marks: runs; lines at one "
            f"height are drawn apart. {counted(comparison.seeds())}."
        )
        return finish(figure, styles, note, {})


def _split(comparison: Comparison, split: str) -> pd.DataFrame:
    return comparison.evals[comparison.evals["split"] == split]


def with_unit(comparison: Comparison, column: str) -> str:
    """A reward or measure as an axis is labelled."""
    unit = comparison.units.get(column) or MEASURES.get(column)
    return f"{column} ({unit})" if unit else column


def _base_line(axes: Axes, rows: pd.DataFrame, name: str) -> None:
    base = rows.loc[rows["step"] == 0, name].mean()
    axes.axhline(base, color=GREY, linewidth=1, linestyle="--", zorder=1)


def _base_star(axes: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    base = rows[rows["step"] == 0]
    axes.plot(base[x].mean(), base[y].mean(), marker="*", color="black", markersize=9, zorder=5)


def draw_lines(
    axes: Axes, rows: pd.DataFrame, x: str, y: str, styles: Looks, last: bool = False
) -> None:
    """One curve per method with its seeds behind it; ``last`` marks the last checkpoint."""
    for label, look in styles.items():
        mine = rows[rows["label"] == label]
        if mine.empty:
            continue
        seeds = [seed[[x, y]].to_numpy(float) for _, seed in mine.groupby("cell")]
        if len(seeds) > 1:  # one line with gaps: much faster than one for each seed
            gap = [[math.nan, math.nan]]
            ends = np.concatenate([np.concatenate([s[-1:] if last else s, gap]) for s in seeds])
            axes.plot(*ends.T, color=look.color, alpha=0.4, linewidth=0.6, marker=look.marker,
                      markersize=1.8 + 1.5 * last, markeredgewidth=0)  # fmt: skip
        mean = curve(mine, x, y)
        axes.plot(mean["x"], mean["value"], **vars(look), linewidth=1.6, markersize=5,
                  markeredgecolor="white", markeredgewidth=0.5, zorder=3)  # fmt: skip
        if last:
            axes.plot(*mean[["x", "value"]].iloc[-1], marker=look.marker, color=look.color,
                      markersize=9, markeredgecolor="white", zorder=4)  # fmt: skip
        else:
            low, high = mean["low"], mean["high"]
            axes.fill_between(mean["x"], low, high, color=look.color, alpha=0.15, lw=0)
