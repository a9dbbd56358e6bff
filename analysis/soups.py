"""The figures about evaluated checkpoints: soup sweeps, and adapters in part of the chain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.collect import Evaluated
from analysis.records import MEASURES
from analysis.sheets import Sheet, Value
from analysis.statistics import ENOUGH_SEEDS, Estimate, summarise
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


def values(row: Any) -> dict[str, float]:
    """Rewards and measures of a record, by name."""
    return {**row["rewards"], **{name: row[name] for name in MEASURES}}


def typical(evaluated: Sequence[Evaluated]) -> Evaluated:
    """One evaluation for the same of several seeds' checkpoints: the values of a typical run."""
    rows = []
    for same in zip(*(one.rows for one in evaluated), strict=True):
        score = {name: over(same, name).value for name in values(same[0])}
        rewards = {name: score[name] for name in same[0]["rewards"]}
        rows.append({**same[0], "rewards": rewards} | {name: score[name] for name in MEASURES})
    info = dict(evaluated[0].info)
    info["checkpoints"] = [
        {**c, "seed": None, "path": f"{c['method']} on {c['reward']}"} for c in info["checkpoints"]
    ]
    return Evaluated(path=evaluated[0].path, info=info, rows=rows)


def over(same: Sequence[Any], name: str) -> Estimate:
    """A value of one candidate on one split, over seeds."""
    return summarise([values(row)[name] for row in same])


def sweep(evaluated: Evaluated) -> Figure:
    """Changes from the base model against the coefficient of the last checkpoint, per split."""
    series: dict[str, Any] = {}
    for split, look in SPLIT_LOOKS.items():
        rows = [row for row in evaluated.rows[1:] if row["split"] == split and row["candidate"]]
        if rows:
            series[split] = (look, [row["coefficients"][-1] for row in rows], rows)
    names = [Path(c["path"]).name for c in evaluated.info["checkpoints"]]
    ends = (BASE if len(names) == 1 else names[0], names[-1])
    note = f"0: {ends[0]}. 1: {ends[1]}. Mixed are the products B A."
    return _panels(evaluated, series, f"coefficient of {names[-1]}", note)


def early_late(evaluated: Evaluated) -> Figure:
    """Changes from the base model against the share of the chain in which adapters are used."""
    split = evaluated.rows[-1]["split"]
    rows = [row for row in evaluated.rows if row["split"] == split and row["candidate"]]
    series = {}
    for part, look in PART_LOOKS.items():
        mine = [r for r in rows if (r["part"][0] == 0 if part == "first" else r["part"][1] == 1)]
        mine.sort(key=lambda row: row["part"][1] - row["part"][0])
        series[part] = (look, [100 * (r["part"][1] - r["part"][0]) for r in mine], mine)
    note = f"Split: {split}. Adapters off in the other sampling steps."
    return _panels(evaluated, series, "sampling steps with adapters (%)", note)


def _panels(evaluated: Evaluated, series: dict[str, Any], xlabel: str, note: str) -> Figure:
    names = list(values(evaluated.rows[0]))
    height = -(-len(names) // 3)
    with theme():
        figure = Figure(figsize=(PAGE, 2.0 * height + 0.9), layout="constrained")
        grid = figure.subplots(height, 3, squeeze=False, sharex=True)
        for axes in grid.flat[len(names) :]:
            axes.set_axis_off()
        for axes, name in zip(grid.flat, names, strict=False):
            _panel(axes, name, series, evaluated.rows)
            unit = evaluated.info["units"].get(name)
            axes.set_title(f"{name} ({unit})" if unit else name)
        for axes in grid.flat[max(0, len(names) - 3) : len(names)]:
            axes.tick_params(labelbottom=True)
        grid[-1, 0].set_xlabel(xlabel, loc="left")
        handles = {look["label"]: _handle(grid[0, 0], look) for look, _, _ in series.values()}
        note += " Values minus the base model's on the same noise; one evaluation, so no interval."
        return finish(figure, {}, note, {BASE: BASE_LINE} | handles)


def _panel(axes: Axes, name: str, series: dict[str, Any], rows: Sequence[Any]) -> None:
    base = {row["split"]: values(row)[name] for row in rows if row["candidate"] == 0}
    axes.axhline(0, color=GREY, lw=1, ls="--", zorder=1)
    for look, x, mine in series.values():
        changes = [values(row)[name] - base[row["split"]] for row in mine]
        axes.plot(x, changes, lw=1.5, ms=4.5, **look)


def _handle(axes: Axes, look: dict[str, Any]) -> Any:
    return axes.plot([], [], lw=1.5, ms=4.5, **look)[0]


#: The figure for each kind of evaluation that has one.
FIGURES = {"sweep": sweep, "parts": early_late}


def sheet(*evaluated: Evaluated) -> Sheet:
    """Rewards and measures of every candidate on every split; of several seeds' checkpoints."""
    rows: list[dict[str, Value]] = [
        {
            "": str(same[0]["name"]),
            "split": str(same[0]["split"]),
            **{name: over(same, name) for name in values(same[0])},
        }
        for same in zip(*(one.rows for one in evaluated), strict=True)
    ]
    note = "Fixed noise, the same for all rows. Drift is the distance from the base model."
    if len(evaluated) > 1:
        intervals = ", 95 % bootstrap intervals" * (len(evaluated) >= ENOUGH_SEEDS)
        note += f" Of the checkpoints of {len(evaluated)} seeds{intervals}."
    title = typical(evaluated).title if len(evaluated) > 1 else evaluated[0].title
    return Sheet(title=title, note=note, columns=list(rows[0]), rows=rows)
