"""The figures about evaluated checkpoints: soup sweeps, and adapters in part of the chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.changes import scores
from analysis.collect import Evaluated
from analysis.records import MEASURES
from analysis.sheets import Sheet, Value
from analysis.statistics import Estimate, Layout, caption, estimate
from analysis.style import BASE, BASE_LINE, GREY, PAGE, finish, theme

# In greys: colours are the methods'.
ONE: dict[str, Any] = {"color": "0.1", "ls": "-", "marker": "o"}
OTHER: dict[str, Any] = {"color": "0.55", "ls": (0, (6, 1.5)), "marker": "s"}
SPLIT_LOOKS = {
    "train": {**ONE, "label": "training prompts"},
    "unseen": {**OTHER, "label": "unseen prompts"},
    "prompts": {**ONE, "label": "given prompts"},
}
PART_LOOKS = {
    "first": {**ONE, "label": "first sampling steps"},
    "last": {**OTHER, "label": "last ones"},
}


Record = Mapping[str, Any]


def values(row: Any) -> dict[str, float]:
    """Rewards and measures of a record, by name."""
    return {**row["rewards"], **{name: row[name] for name in MEASURES}}


def title(evaluated: Sequence[Evaluated]) -> str:
    """What was evaluated; of several seeds' checkpoints, without the seeds."""
    if len(evaluated) == 1:
        return evaluated[0].title
    return f"{evaluated[0].info['backbone']}: {'; '.join(_names(evaluated))}"


def _names(evaluated: Sequence[Evaluated]) -> list[str]:
    """The checkpoints, in a few words."""
    checkpoints = evaluated[0].info["checkpoints"]
    if all(c.get("method") for c in checkpoints):
        return [f"{c['method']} on {c['reward']}" for c in checkpoints]
    return [Path(c["path"]).name for c in checkpoints]


def apart(pairs: Sequence[tuple[Record, Record]], name: str) -> Layout:
    """How far the first record of each pair is above the second, picture by picture; a pair is a
    run."""
    found = [[scores(record.get("per_image", ()), name) for record in pair] for pair in pairs]
    first = found[0][0] if found else {}
    keys = [key for key in first if all(key in pictures for pair in found for pictures in pair)]
    if keys:
        table = [[one[key] - other[key] for key in keys] for one, other in found]
    else:
        table = [[values(one)[name] - values(other)[name]] for one, other in pairs]
    changes = np.array(table, dtype=float).reshape(len(pairs), len(keys) or 1)
    return Layout(changes, tuple(prompt for prompt, _ in keys))


def over(same: Sequence[tuple[Record, Record]], name: str) -> Estimate:
    """A value of one candidate on one split, with the error of its change from the base model's;
    pairs of their records, one for each seed."""
    start = float(np.mean([values(base)[name] for _, base in same]))
    return estimate(apart(same, name)).shifted(start)


def candidates(evaluated: Sequence[Evaluated], split: str) -> list[list[tuple[Record, Record]]]:
    """For each candidate on a split, the base model first: its record and the base model's, of
    every seed."""
    found = [[row for row in one.rows if row["split"] == split] for one in evaluated]
    return [[(rows[k], rows[0]) for rows in found] for k in range(len(found[0]))]


def sweep(*evaluated: Evaluated) -> Figure:
    """Changes from the base model against the coefficient of the last checkpoint, per split."""
    series = []
    for split, look in SPLIT_LOOKS.items():
        rows = [row for row in evaluated[0].rows if row["split"] == split and row["candidate"]]
        if rows:
            at = {number: row["coefficients"][-1] for number, row in enumerate(rows)}
            series.append(Series(look, split, at))
    names = _names(evaluated)
    ends = (BASE if len(names) == 1 else names[0], names[-1])
    note = f"0: {ends[0]}. 1: {ends[1]}. Mixed are the products B A."
    return _panels(evaluated, series, "coefficient", note)


def early_late(*evaluated: Evaluated) -> Figure:
    """Changes from the base model against the share of the chain in which adapters are used."""
    split = evaluated[0].rows[-1]["split"]
    rows = [row for row in evaluated[0].rows if row["split"] == split and row["candidate"]]
    series = []
    for part, look in PART_LOOKS.items():
        mine = [k for k, r in enumerate(rows) if r["part"][part == "last"] == (part == "last")]
        shares = {k: 100 * (rows[k]["part"][1] - rows[k]["part"][0]) for k in mine}
        series.append(Series(look, split, dict(sorted(shares.items(), key=lambda kv: kv[1]))))
    prompts = SPLIT_LOOKS[split]["label"]
    note = f"{prompts.capitalize()}. Adapters are off in the other sampling steps."
    return _panels(evaluated, series, "steps with adapters (%)", note)


@dataclass(frozen=True)
class Series:
    """A line of every panel: its look, and where each candidate (by number) stands."""

    look: Mapping[str, Any]
    split: str
    at: Mapping[int, float]


def _panels(
    evaluated: Sequence[Evaluated], series: Sequence[Series], xlabel: str, note: str
) -> Figure:
    names, units = list(values(evaluated[0].rows[0])), MEASURES | evaluated[0].info["units"]
    height = -(-len(names) // 3)
    with theme():
        figure = Figure(figsize=(PAGE, 1.9 * height), layout="constrained")
        grid = figure.subplots(height, 3, squeeze=False, sharex=True)
        for axes in grid.flat[len(names) :]:
            axes.set_axis_off()
        for axes, name in zip(grid.flat, names, strict=False):
            axes.axhline(0, color=GREY, lw=1, ls="--", zorder=1)
            for one in series:
                _line(axes, one, candidates(evaluated, one.split)[1:], name)
            unit = units.get(name)
            axes.set_title(f"{name} ({unit})" if unit else name)
        for axes in grid.flat[max(0, len(names) - 3) : len(names)]:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(xlabel)
        for axes in grid[:, 0]:
            axes.set_ylabel("change")
        handles = {one.look["label"]: Line2D([], [], lw=1.5, ms=4.5, **one.look) for one in series}
        note += f" Values minus the base model's on the same noise. {_counted(len(evaluated))}"
        return finish(figure, {}, note, {BASE: BASE_LINE} | handles)


def _line(
    axes: Axes, one: Series, found: Sequence[Sequence[tuple[Record, Record]]], name: str
) -> None:
    """The typical run with its interval, the seeds behind it."""
    x, layouts = list(one.at.values()), [apart(found[k], name) for k in one.at]
    color = one.look["color"]
    runs = np.array([layout.runs() for layout in layouts])
    if runs.shape[1] > 1:
        axes.plot(x, runs, lw=0.6, alpha=0.4, color=color)
    typical = [estimate(layout) for layout in layouts]
    low, high = [v.low for v in typical], [v.high for v in typical]
    axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
    axes.plot(x, [v.value for v in typical], lw=1.5, ms=4.5, **one.look)


def _counted(seeds: int) -> str:
    return "One checkpoint, so no interval." if seeds == 1 else caption([seeds], drawn=True)


def sheet(*evaluated: Evaluated) -> Sheet:
    """Rewards and measures of every candidate on every split; of several seeds' checkpoints."""
    splits = dict.fromkeys(str(row["split"]) for row in evaluated[0].rows)
    found = {split: candidates(evaluated, split) for split in splits}
    rows: list[dict[str, Value]] = [
        {
            "candidate": str(same[0][0]["name"]),
            "split": split,
            **{name: over(same, name) for name in values(same[0][0])},
        }
        for together in zip(*found.values(), strict=True)
        for split, same in zip(found, together, strict=True)
    ]
    note = "Fixed noise, the same for all rows. Drift is the distance from the base model."
    if len(evaluated) > 1:
        note += f" {caption([len(evaluated)])}"
    return Sheet(title=title(evaluated), note=note, columns=list(rows[0]), rows=rows)
