"""The two figures: reward against budget, and train reward against everything else."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.collect import Comparison
from analysis.statistics import caption, curve, over_seeds
from analysis.tables import BASE, SPLITS

# Slots in this order keep a method's look the same from one report to the next; others follow.
KNOWN = ("alignprop", "ddpo", "rwr", "refl", "draft-lv", "drtune", "dpok", "d3po")
COLOURS = [sns.color_palette("colorblind").as_hex()[i] for i in (0, 3, 2, 1, 4, 5, 9, 7)]
MARKERS = "osD^vPX<>"
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (1, 1)), (0, (3, 1)))
THEME: Any = {
    "pdf.fonttype": 42,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.linewidth": 0.8,
}
GREY = "0.35"


@dataclass(frozen=True)
class Look:
    """How one method is drawn, everywhere."""

    color: str
    marker: str
    linestyle: Any


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """Labels in drawing order, each with a look that differs in colour, marker and dash."""
    taken = {label: KNOWN.index(label) for label in labels if label in KNOWN}
    free = (slot for slot in range(len(labels) + len(KNOWN)) if slot not in taken.values())
    slots = taken | {label: next(free) for label in sorted(set(labels) - set(taken))}
    pick = {label: (slot % len(COLOURS), slot % len(MARKERS), slot % len(DASHES))
            for label, slot in sorted(slots.items(), key=lambda item: item[1])}  # fmt: skip
    return {k: Look(COLOURS[c], MARKERS[m], DASHES[d]) for k, (c, m, d) in pick.items()}


@contextmanager
def _theme() -> Iterator[None]:
    with sns.axes_style("ticks"), sns.plotting_context("paper"), mpl.rc_context(THEME):
        yield


def reward_curve(comparisons: Sequence[Comparison], styles: dict[str, Look]) -> Figure:
    """Reported train reward against the budget spent, on training and on unseen prompts."""
    with _theme():
        figure = Figure(figsize=(7.2, 2.9 * len(comparisons) + 0.6), layout="constrained")
        grid = figure.subplots(len(comparisons), 2, squeeze=False, sharey="row")
        for comparison, row in zip(comparisons, grid, strict=True):
            for split, axes in zip(SPLITS, row, strict=True):
                rows = comparison.evals[comparison.evals["split"] == split]
                base = over_seeds(rows[rows["step"] == 0], comparison.reward).value
                axes.axhline(base, color=GREY, linewidth=1, linestyle="--", zorder=1)
                _lines(axes, rows, "spent", comparison.reward, styles)
                axes.set(title=f"{SPLITS[split]} {comparison.task}")
                axes.set(xlabel=f"budget spent ({comparison.budget_unit})")
                axes.set_xlim(left=0)
            row[0].set_ylabel(_name(comparison, comparison.reward))
        _finish(figure, comparisons, styles, Line2D([], [], color=GREY, lw=1, ls="--"), "")
    return figure


def overoptimisation(comparisons: Sequence[Comparison], styles: dict[str, Look]) -> Figure:
    """Held-out rewards and diversity against the train reward, both on training prompts."""
    names = [[*comparison.held_out, "diversity"] for comparison in comparisons]
    width = max(map(len, names))
    with _theme():
        size = (max(3.6 * width, 4.5), 2.9 * len(comparisons) + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(comparisons), width, squeeze=False)
        for comparison, row, some in zip(comparisons, grid, names, strict=True):
            rows = comparison.evals[comparison.evals["split"] == "train"]
            for axes in row[len(some) :]:
                axes.set_axis_off()
            for name, axes in zip(some, row, strict=False):
                _lines(axes, rows, comparison.reward, name, styles, last=True)
                base = rows[rows["step"] == 0]
                point = [over_seeds(base, n).value for n in (comparison.reward, name)]
                axes.plot(*point, marker="*", color="black", markersize=9, zorder=5)
                axes.set(xlabel=_name(comparison, comparison.reward))
                axes.set(ylabel=_name(comparison, name), title=f"training {comparison.task}")
        star = Line2D([], [], color="black", marker="*", ls="", markersize=9)
        note = "Paths run from the base model to the last checkpoint (large marker). "
        _finish(figure, comparisons, styles, star, note)
    return figure


def _name(comparison: Comparison, reward: str) -> str:
    unit = comparison.units.get(reward)
    return f"{reward} ({unit})" if unit else reward


def _lines(axes: Axes, rows: pd.DataFrame, x: str, y: str, styles: dict[str, Look],
           last: bool = False) -> None:  # fmt: skip
    """One curve per method with its seeds behind it; ``last`` marks the last checkpoint."""
    for label, look in styles.items():
        mine = rows[rows["label"] == label]
        seeds = mine.groupby("cell")
        for _, seed in seeds if len(seeds) > 1 else ():
            seed = seed.tail(1) if last else seed
            axes.plot(seed[x], seed[y], color=look.color, alpha=0.4, linewidth=0.6,
                      marker=look.marker, markersize=1.8, markeredgewidth=0)  # fmt: skip
        if mine.empty:
            continue
        mean = curve(mine, x, y)
        every = max(1, len(mean) // 10)
        axes.plot(mean["x"], mean["value"], **vars(look), linewidth=1.6, markersize=5,
                  markeredgecolor="white", markeredgewidth=0.5, markevery=every,
                  zorder=3)  # fmt: skip
        if not last:
            axes.fill_between(
                mean["x"], mean["low"], mean["high"], color=look.color, alpha=0.15, lw=0
            )
        else:
            axes.plot(*mean[["x", "value"]].iloc[-1], marker=look.marker, color=look.color,
                      markersize=9, markeredgecolor="white", zorder=4)  # fmt: skip


def _finish(figure: Figure, comparisons: Sequence[Comparison], styles: dict[str, Look],
            base: Line2D, note: str) -> None:  # fmt: skip
    for axes in figure.axes:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(True, color="0.92", linewidth=0.6)
        sns.despine(ax=axes)
    handles = [base, *(Line2D([], [], **vars(look), lw=1.6, ms=4.5) for look in styles.values())]
    figure.legend(handles, [BASE, *styles], loc="outside upper center", frameon=False,
                  ncols=min(len(handles), int(figure.get_figwidth() / 1.3)),
                  handlelength=3)  # fmt: skip
    seeds = [n for c in comparisons for n in c.evals.groupby("label")["seed"].nunique()]
    text = textwrap.fill(note + caption(seeds), int(figure.get_figwidth() * 16))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7.5, color=GREY)
