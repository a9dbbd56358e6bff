"""Methods where they have gone equally far: equal drift from the base model, and equal fidelity.

At equal compute one method may simply have gone further along a path that all share. Here each
run's checkpoints are joined in the order of training, and its reward is read off where the path
first comes as far as asked: in drift, or in what the guard's rewards (else the held-out ones) have
lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.changes import base_rows, scores
from analysis.collect import Comparison
from analysis.curves import with_unit
from analysis.records import natural
from analysis.sheets import Sheet, Value
from analysis.statistics import NAN, Estimate, Layout, caption, estimate
from analysis.style import BASE, BASE_LINE, GREY, PAGE, Look, Looks, finish, theme, used
from analysis.targets import guarded, unit

#: Falls of fidelity at which methods are compared, in deviations within a prompt.
FALLS = (0.5, 1.0, 2.0)
POINTS = 25  # of a drawn path


def fidelities(comparison: Comparison) -> list[str]:
    """The rewards that say whether pictures still show what was asked for."""
    evals = comparison.evals
    named = {name for floors in evals["floors"] if floors for name in floors}
    if guarded(evals) and named:
        return sorted(named)
    return [name for name in comparison.held_out if evals[name].notna().all()]


@dataclass(frozen=True)
class Distance:
    """How far evaluations are from the base model: in drift, or in what a reward has lost, in
    deviations within a prompt. Growing, and 0 there."""

    name: str
    start: float = 0.0
    unit: float = -1.0

    def of(self, rows: pd.DataFrame) -> np.ndarray:
        """One for each row."""
        return np.asarray((self.start - rows[self.name].to_numpy(float)) / self.unit)

    def words(self, far: float) -> str:
        """A column's header."""
        return f"drift {far:g}" if self.name == "drift" else f"{self.name} down {far:g}"


def distances(comparison: Comparison, split: str) -> list[Distance]:
    """All that methods are compared at: only what some run has lost."""
    rows = comparison.evals[comparison.evals["split"] == split]
    found = [Distance("drift")] if comparison.evals["drift"].notna().all() else []
    for name in fidelities(comparison):
        start = float(base_rows(comparison.evals, split)[name].mean())
        size = unit(comparison, split, name)
        loss = Distance(name, start, size)
        if size > 0 and (loss.of(rows) >= FALLS[0]).any():
            found.append(loss)
    return found


def place(path: np.ndarray, far: float) -> tuple[int, float] | None:
    """Between which evaluations (k, k + 1) a path first is so ``far``, and at which share of the
    way; None if it never is."""
    beyond = np.flatnonzero(path >= far)
    if not len(beyond):
        return None
    k = int(beyond[0])
    if k == 0:
        return 0, 0.0
    return k - 1, float((far - path[k - 1]) / (path[k] - path[k - 1]))


class Path:
    """One run's evaluations in the order of training, and its reward picture by picture."""

    def __init__(self, rows: pd.DataFrame, reward: str) -> None:
        self.rows, self.gain = rows, (rows[reward] - rows[reward].iloc[0]).to_numpy(float)
        seen = [scores(pictures, reward) for pictures in rows["per_image"]]
        keys = [key for key in seen[0] if all(key in one for one in seen)]
        self.prompts = tuple(prompt for prompt, _ in keys)
        if keys:
            self.values = np.array([[one[key] for key in keys] for one in seen])
        else:
            self.values = rows[[reward]].to_numpy(float)

    def change(self, where: tuple[int, float]) -> np.ndarray:
        """(pictures,): from the base model to a place on the path."""
        k, share = where
        after = self.values[min(k + 1, len(self.values) - 1)]
        return np.asarray((1 - share) * self.values[k] + share * after - self.values[0])


def at(paths: Sequence[Path], distance: Distance, far: float) -> tuple[Estimate, int]:
    """The gain over the base model of a typical run where it is so ``far``; how many ever are.

    No number unless all are: those that go furthest are not those that gain as much on the way.
    """
    places = [place(distance.of(path.rows), far) for path in paths]
    there = [where for where in places if where is not None]
    same = len({path.prompts for path in paths}) == 1
    if len(there) < len(paths) or not same:
        return Estimate(value=NAN, seeds=0), len(there)
    rows = [path.change(where) for path, where in zip(paths, there, strict=True)]
    whole = all(bool(path.rows["whole"].all()) for path in paths)
    return estimate(Layout(np.array(rows), paths[0].prompts, whole)), len(there)


def drifts(most: float) -> list[float]:
    """The last four of 1, 2, 5, 10, 20, ... (times any power of ten) up to ``most``."""
    if not most > 0:
        return []
    top = math.floor(math.log10(most))
    steps = [float(f"{m}e{e}") for e in (top - 2, top - 1, top) for m in (1, 2, 5)]
    return [step for step in steps if step <= most][-4:]


def _runs(comparison: Comparison, label: str, split: str) -> list[pd.DataFrame]:
    evals = comparison.evals
    rows = evals[(evals["label"] == label) & (evals["split"] == split)]
    rows = rows.sort_values(["step", "fraction"], kind="stable")
    return [run for _, run in rows.groupby("cell")]


def table(comparison: Comparison) -> Sheet | None:
    """The gain of every method at equal drift and at equal loss of fidelity."""
    split, rows = "train", list[dict[str, Value]]()
    far = distances(comparison, split)
    if (comparison.evals["step"] > 0).sum() == 0 or not far:
        return None
    most = float(comparison.evals.loc[comparison.evals["split"] == split, "drift"].max())
    for label in sorted(set(comparison.evals["label"]), key=natural):
        runs, row = _runs(comparison, label, split), dict[str, Value](method=label)
        paths = [Path(run, comparison.reward) for run in runs]
        for distance in far:
            for level in drifts(most) if distance.name == "drift" else FALLS:
                gain, there = at(paths, distance, level)
                fewer = f"{there} of {len(runs)} there" if there else "-"
                row[distance.words(level)] = fewer if math.isnan(gain.value) else gain
        rows.append(row)
    note = (
        f"Gain in {comparison.reward} over the base model on training prompts, where a run first "
        "is so far from it: in drift, or in what it has lost, in deviations between the base "
        "model's pictures of one prompt; linear between evaluations. A gain is given only if all "
        f"runs of a method get so far. {caption(comparison.seeds())}"
    )
    return Sheet(title=comparison.title, note=note, columns=list(rows[0]), rows=rows)


def figure(comparison: Comparison, styles: Looks) -> Figure | None:
    """Gain against drift and against each loss of fidelity: methods where they are equally far."""
    split, styles = "train", used(styles, comparison.labels)
    far = distances(comparison, split)
    if not far:
        return None
    lines = -(-len(far) // 2)
    with theme():
        drawn = Figure(figsize=(PAGE, 2.3 * lines), layout="constrained")
        grid = drawn.subplots(lines, 2, squeeze=False, sharey=True)
        for axes in grid.flat[len(far) :]:
            axes.set_axis_off()
        for distance, axes in zip(far, grid.flat, strict=False):
            axes.axhline(0, color=GREY, linewidth=1, linestyle="--", zorder=1)
            for label, look in styles.items():
                runs = _runs(comparison, label, split)
                _draw(axes, [Path(run, comparison.reward) for run in runs], distance, look)
            if distance.name == "drift":
                axes.set(xscale="log", xlabel=with_unit(comparison, "drift"))
            else:
                axes.set(xlabel=f"{distance.name} lost (deviations)")
        for axes in grid[:, 0]:
            axes.set_ylabel(f"gain, {with_unit(comparison, comparison.reward)}")
        note = (
            "Training prompts. Thin: runs. Thick: the typical run where all runs of a method are "
            "equally far, up to the one that goes least far. Deviations: between the base model's "
            f"pictures of one prompt. {caption(comparison.seeds(), drawn=True)}"
        )
        return finish(drawn, styles, note, {BASE: BASE_LINE})


def _draw(axes: Axes, paths: Sequence[Path], distance: Distance, look: Look) -> None:
    faint: dict[str, Any] = {
        "color": look.color,
        "marker": look.marker,
        "alpha": 0.4,
        "lw": 0.6,
        "ms": 1.8,
    }
    for path in paths:
        axes.plot(distance.of(path.rows), path.gain, mew=0, **faint)
    most = min((float(distance.of(path.rows).max()) for path in paths), default=0.0)
    if most <= 0:
        return
    least = max(float(distance.of(path.rows)[1]) for path in paths if len(path.gain) > 1)
    if distance.name != "drift":
        x = np.linspace(0, most, POINTS).tolist()
    elif 0 < least < most:
        x = np.geomspace(least, most, POINTS).tolist()
    else:
        return
    gains = [at(paths, distance, far)[0] for far in x]
    axes.plot(x, [gain.value for gain in gains], color=look.color, ls=look.linestyle, lw=1.6)
    axes.plot(x[-1], gains[-1].value, look.marker, color=look.color, ms=6, mec="white")
    low, high = ([getattr(gain, end) for gain in gains] for end in ("low", "high"))
    axes.fill_between(x, low, high, color=look.color, alpha=0.15, lw=0)
