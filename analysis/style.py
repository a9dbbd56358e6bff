"""How everything is drawn: one look per method, sizes for a paper's column, PNG and PDF."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.records import natural

# Slots in this order keep a method's look the same from one report to the next; others follow.
KNOWN = ("alignprop", "ddpo", "rwr", "refl", "draft-lv", "drtune", "dpok", "d3po")
COLOURS = [sns.color_palette("colorblind").as_hex()[i] for i in (0, 3, 2, 1, 4, 5, 9, 7)]
MARKERS = "osD^vPX<>"
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (1, 1)), (0, (3, 1)))
# Drawn at the size of a column or of a page: letters keep these sizes in print.
COLUMN, PAGE = 3.4, 7.2  # inches
THEME: Any = {
    "pdf.fonttype": 42,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.linewidth": 0.8,
}
GREY = "0.35"
BASE = "base model"
BASE_LINE = Line2D([], [], color=GREY, lw=1, ls="--")
BASE_STAR = Line2D([], [], color="black", marker="*", ls="", markersize=9)


@dataclass(frozen=True)
class Look:
    """How one method is drawn, everywhere."""

    color: str
    marker: str
    linestyle: Any


Looks = dict[str, Look]


def looks(labels: Sequence[str]) -> Looks:
    """Labels in drawing order, each with a look that differs in colour, marker and dash."""
    taken = {label: KNOWN.index(label) for label in labels if label in KNOWN}
    free = (slot for slot in range(len(labels) + len(KNOWN)) if slot not in taken.values())
    others = sorted(set(labels) - set(taken), key=natural)
    slots = taken | {label: next(free) for label in others}
    ordered = sorted(slots, key=lambda label: slots[label])
    return {label: _look(slots[label]) for label in ordered}


def _look(slot: int) -> Look:
    dash = DASHES[slot % len(DASHES)]
    return Look(COLOURS[slot % len(COLOURS)], MARKERS[slot % len(MARKERS)], dash)


@contextmanager
def theme() -> Iterator[None]:
    """Inside, axes are made in the house's style."""
    with sns.axes_style("ticks"), sns.plotting_context("paper"), mpl.rc_context(THEME):
        yield


def finish(figure: Figure, styles: Looks, note: str, extra: dict[str, Line2D]) -> Figure:
    """Tidy all axes, one legend above for all, ``note`` below; the figure grows by these two."""
    for axes in figure.axes:
        _tidy(axes)
    lines = {k: Line2D([], [], **vars(look), lw=1.6, ms=4.5) for k, look in styles.items()}
    handles = {**extra, **lines}
    width = figure.get_figwidth()
    longest = 0.55 + 0.068 * max(map(len, handles), default=1)
    columns = max(1, min(len(handles), int(width / longest)))
    if handles:
        figure.legend([*handles.values()], [*handles], loc="outside upper center", frameon=False,
                      ncols=columns, handlelength=3)  # fmt: skip
    text = textwrap.wrap(note.replace("95 %", "95\N{NO-BREAK SPACE}%"), int(width * 17))
    figure.supxlabel("\n".join(text), x=0.01, ha="left", fontsize=7.5, color=GREY)
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.18 * rows + 0.125 * len(text) + 0.2)
    return figure


def _tidy(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "linear":
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.grid(True, color="0.92", linewidth=0.6)
    sns.despine(ax=axes)


def used(styles: Looks, labels: Sequence[str]) -> Looks:
    """Only the looks of ``labels``."""
    return {label: look for label, look in styles.items() if label in set(labels)}


def encoded(figure: Figure, kind: str) -> bytes:
    """The figure as ``png`` or ``pdf``; the same figure always gives the same bytes."""
    if engine := figure.get_layout_engine():  # once, not for each format
        engine.execute(figure)
        figure.set_layout_engine("none")
    buffer = BytesIO()
    metadata = {"CreationDate": None} if kind == "pdf" else None
    figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()
