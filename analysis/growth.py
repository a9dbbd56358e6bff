"""The figure about speed: how time and memory grow with sampling steps, batch and K."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.style import GREY, PAGE, finish, theme

MEASURED: dict[str, Any] = {"color": "0.1", "marker": "o", "markersize": 4.5}
LINE: dict[str, Any] = {"color": GREY, "lw": 1, "ls": "--"}


def growth(result: Mapping[str, Any]) -> Figure:
    """Seconds of an optimizer step with their line above, peak memory below.

    ``result`` is what ``benchmarks.speed`` measured: a column per thing that grows.
    """
    columns = result["growth"]
    with theme():
        figure = Figure(figsize=(PAGE, 3.8), layout="constrained")
        grid = figure.subplots(2, len(columns), sharex="col", squeeze=False)
        for (above, below), (name, points) in zip(grid.T, columns.items(), strict=True):
            values = np.array(points["values"])
            line = points["seconds_constant"] + points["seconds_each"] * values
            above.plot(values, points["seconds"], ls="", **MEASURED)
            above.plot(values, line, **LINE)
            below.plot(values, np.array(points["peak_bytes"]) / 1e6, lw=1.5, **MEASURED)
            below.set_xlabel(name)
            for axes in (above, below):
                axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        grid[0, 0].set_ylabel("s per optimizer step")
        grid[1, 0].set_ylabel("peak memory (MB)")
        handles = {
            "measured": Line2D([], [], ls="", **MEASURED),
            "least squares": Line2D([], [], **LINE),
        }
        return finish(figure, {}, "Medians of a few rounds, on the embedded model.", handles)
