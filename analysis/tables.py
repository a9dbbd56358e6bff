"""The tables about runs. Each takes one comparison and gives a Sheet, or None without data."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import pandas as pd

from analysis import placebo, progress, published, targets
from analysis.changes import base_rows, difference, level
from analysis.collect import Comparison, settings
from analysis.records import BUDGETS, MEASURES, SPLITS, natural
from analysis.sheets import Sheet, Value, point
from analysis.statistics import (
    NAN,
    Estimate,
    caption,
    counted,
    last_rows,
    median_cost,
    probability_of_improvement,
    stratified,
)
from analysis.style import BASE

COSTS = {header: (column, divisor) for column, divisor, header in BUDGETS.values()}
PEAK = "peak memory (GiB)"
STYLES = dict.fromkeys(COSTS, ",.0f") | {"TFLOP": ",.4g", "seeds": ".0f"}


def generalisation(comparison: Comparison) -> Sheet | None:
    """The base model, then the methods, best first by the reward on unseen prompts.

    Train reward, held-out rewards and diversity at the last checkpoint, on training and on unseen
    prompts; then the number of seeds, and what was published.
    """
    names = [comparison.reward, *comparison.held_out]
    if comparison.evals["diversity"].notna().any():
        names.append("diversity")
    sheet = _by_method(comparison, names)
    known = published.beside(comparison)
    if sheet is None or not known:
        return sheet
    rows = [{**row, "published": known.get(str(row["method"]), "-")} for row in sheet.rows]
    return dataclasses.replace(sheet, columns=[*sheet.columns, "published"], rows=rows)


def measures(comparison: Comparison) -> Sheet | None:
    """What a reward alone hides, for the same checkpoints in the same order."""
    names = [name for name in MEASURES if comparison.evals[name].notna().any()]
    return _by_method(comparison, names) if names else None


def _by_method(comparison: Comparison, names: Sequence[str]) -> Sheet | None:
    """Values at the last checkpoints on both splits, the base model's first."""
    evals = comparison.evals
    last = last_rows(evals)
    splits = [split for split in SPLITS if split in set(evals["split"])]
    if not splits:
        return None
    rows: list[dict[str, Value]] = []
    for label in comparison.labels:
        group = last[last["label"] == label]
        if not group.empty:
            seeds = point(int(group["seed"].nunique()))
            row: dict[str, Value] = {"method": label}
            row |= _scores(group, evals, names, splits)
            if comparison.reward in names:
                row |= _beside(comparison, label, group, splits)
            rows.append(row | {"seeds": seeds})
    base, decisive = base_rows(evals, splits[-1]), last[last["split"] == splits[-1]]
    ends = {n: level(rows_, base, comparison.reward) for n, rows_ in decisive.groupby("label")}
    rows.sort(key=lambda row: _rank(ends[row["method"]].value if row["method"] in ends else NAN))
    base = evals[evals["step"] == 0]
    if not base.empty:
        rows.insert(0, {"method": BASE, **_base_scores(base, names, splits)})
    units = {**MEASURES, **comparison.units}
    known = "; ".join(f"{name}: {units[name]}" for name in names if units.get(name))
    note = (
        f"Ranked by {comparison.reward} on {SPLITS[splits[-1]]} prompts. Units: {known}. "
        f"{caption(comparison.seeds())}"
    )
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return Sheet(title=comparison.title, note=note, columns=columns, rows=rows, styles=STYLES)


def _scores(
    group: pd.DataFrame, evals: pd.DataFrame, names: Sequence[str], splits: Sequence[str]
) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name in names:
        for split in splits:
            rows = group[group["split"] == split]
            found[f"{name}, {SPLITS[split]}"] = level(rows, base_rows(evals, split), name)
    return found


def _beside(
    comparison: Comparison, label: str, group: pd.DataFrame, splits: Sequence[str]
) -> dict[str, Value]:
    """The mean of all runs, which an interquartile mean may hide; and whether it is learnt."""
    split, reward = splits[-1], comparison.reward
    rows = group[group["split"] == split]
    mean = level(rows, base_rows(comparison.evals, split), reward).mean
    own = next(cell.placebo for cell in comparison.cells if cell.label == label)
    return {
        f"mean of all runs, {SPLITS[split]}": point(mean, len(rows)),
        "learnt": "placebo" if own else placebo.said(comparison, label, split, reward),
    }


def _rank(score: float) -> tuple[bool, float]:
    return math.isnan(score), -score


def _base_scores(base: pd.DataFrame, names: Sequence[str], splits: list[str]) -> dict[str, Value]:
    """Of one model on the same noise, however many runs started from it: no interval."""
    return {
        f"{name}, {SPLITS[split]}": point(float(base.loc[base["split"] == split, name].mean()))
        for name in names
        for split in splits
    }


def costs(comparison: Comparison) -> Sheet | None:
    """What a run took: means over runs, and the most device memory where it was recorded."""
    last = last_rows(comparison.evals)
    rows: list[dict[str, Value]] = []
    for label in _tuned(last):
        spent = last[last["label"] == label].groupby("cell")[[c for c, _ in COSTS.values()]].max()
        row: dict[str, Value] = {"method": label}
        row |= {h: point(float(spent[c].mean()) / size) for h, (c, size) in COSTS.items()}
        peaks = [cell.peak_bytes for cell in comparison.cells if cell.label == label]
        if peaks := [peak / 2**30 for peak in peaks if not math.isnan(peak)]:
            row[PEAK] = point(max(peaks), len(peaks))
        rows.append(row)
    if not rows:
        return None
    note = "Means over runs; evaluations are off the clock."
    if any(PEAK in row for row in rows):
        note += " Memory: the most that any run's optimizer steps had allocated on the device."
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return Sheet(title=comparison.title, note=note, columns=columns, rows=rows, styles=STYLES)


def matched_compute(comparison: Comparison) -> Sheet | None:
    """From one set of runs: the reward on unseen prompts at equal FLOPs, queries and seconds."""
    evals = comparison.evals[comparison.evals["split"] == "unseen"]
    if evals.empty or evals["step"].max() == 0:
        return None
    columns, rows = ["method"], {label: dict[str, Value](method=label) for label in _tuned(evals)}
    runs = {n: [r for _, r in evals[evals["label"] == n].groupby("seed")] for n in rows}
    for column, divisor, unit in (BUDGETS[kind] for kind in ("flops", "queries", "seconds")):
        for amount in levels(float(evals[column].max()) / divisor):
            header = f"{amount:,.4g} {unit}"
            columns.append(header)
            for label, row in rows.items():
                row[header] = _at(comparison, runs[label], column, amount * divisor)
    note = (
        f"{comparison.reward} on unseen prompts, of the last evaluated checkpoint that cost no "
        f"more; '-': no run of that length. {caption(comparison.seeds())}"
    )
    return Sheet(title=comparison.title, note=note, columns=columns, rows=[*rows.values()])


def levels(most: float) -> list[float]:
    """The last three of 1, 2, 5, 10, 20, ... that do not exceed ``most``.

    Other methods decide which levels are shown, never what stands there.
    """
    if not most > 0:
        return []
    top = math.floor(math.log10(most))
    steps = [float(f"{m}e{e}") for e in (top - 1, top) for m in (1, 2, 5)]
    return [step for step in steps if step <= most][-3:]


def _at(
    comparison: Comparison, runs: Sequence[pd.DataFrame], column: str, amount: float
) -> Estimate:
    found = pd.concat([targets.at_cost(run, column, amount) for run in runs])
    if len(found) < len(runs):
        return point(math.nan, 0)
    return level(found, base_rows(comparison.evals, "unseen"), comparison.reward)


def _tuned(evals: pd.DataFrame) -> list[str]:
    return sorted(set(evals.loc[evals["step"] > 0, "label"]), key=natural)


def time_to_target(comparison: Comparison) -> Sheet | None:
    """How many runs reached the target, and the median of what that took."""
    goal = targets.target(comparison)
    if goal is None:
        return None
    guards = {False: "reward alone"}
    if targets.guarded(comparison.evals):
        guards[True] = "guarded"
    rows: list[dict[str, Value]] = []
    for label in sorted(set(comparison.evals["label"]), key=natural):
        row: dict[str, Value] = {"method": label}
        for guard, word in guards.items():
            for kind in ("flops", "queries", "seconds"):
                column, divisor, unit = BUDGETS[kind]
                spent = targets.costs(comparison, label, column, goal, guard)
                reached = sum(map(math.isfinite, spent))  # the same for every kind
                row[f"reached, {word}"] = f"{reached} of {len(spent)}"
                median, is_open = median_cost(spent, targets.ends(comparison, label, column))
                row[f"{unit}, {word}"] = f"{'>= ' if is_open else ''}{median / divisor:,.4g}"
        rows.append(row)
    floors = f"Guarded: at an evaluation with {targets.floors(comparison.evals)}."
    note = (
        f"Target: {comparison.reward} >= {goal:.4g} on training prompts (base model plus "
        f"{targets.EFFECT:g} deviation between its pictures of one prompt). "
        f"{floors if True in guards else 'These runs had no guard.'} Medians over runs; a run that "
        "never got there counts as one that needs more than it had: '>=' at least."
    )
    return Sheet(title=comparison.title, note=note, columns=list(rows[0]), rows=rows)


def pairs(comparison: Comparison) -> Sheet | None:
    """Each pair of methods: difference on common noise, and probability of improvement."""
    last = last_rows(comparison.evals)
    last, base = last[last["split"] == "unseen"], base_rows(comparison.evals, "unseen")
    rows: list[dict[str, Value]] = []
    for one, other in itertools.combinations(_tuned(last), 2):
        mine, theirs = (last[last["label"] == label] for label in (one, other))
        seeds = [rows.groupby("seed")[comparison.reward].mean() for rows in (mine, theirs)]
        gap = difference(mine, theirs, base, comparison.reward)
        rows.append(
            {
                "methods": f"{one} - {other}",
                "difference": gap,
                "mean of all runs": point(gap.mean, gap.seeds),
                "P(better)": probability_of_improvement([seeds[0].tolist()], [seeds[1].tolist()]),
            }
        )
    if not rows:
        return None
    note = (
        f"{comparison.reward} on unseen prompts, last checkpoints. Difference: same prompts, noise "
        "and seeds; its 95 % interval is over seeds, prompts and pictures, and not corrected for "
        "how many pairs there are. P(better): how often a run of the first beats one of the "
        "second, with an interval over seeds from 5 of each on. "
        f"{counted(comparison.seeds())}."
    )
    return Sheet(title=comparison.title, note=note, columns=list(rows[0]), rows=rows)


def ablation(comparison: Comparison) -> Sheet | None:
    """Variants of one method (the same configuration fields) by the values that set them apart."""
    configs = {cell.label: settings(cell.info) for cell in comparison.cells}
    last, families = last_rows(comparison.evals), dict[frozenset[str], list[str]]()
    for label in comparison.labels:
        families.setdefault(frozenset(configs[label]), []).append(label)
    rows: list[dict[str, Value]] = []
    varied: list[str] = []
    for labels in families.values():
        first = configs[labels[0]]
        keys = [k for k in first if any(configs[label][k] != first[k] for label in labels)]
        varied += [key for key in keys if key not in varied]
        for label in labels if keys else ():
            group = last[last["label"] == label]
            row: dict[str, Value] = {"method": label}
            row |= {k: configs[label][k] for k in keys}
            names = [comparison.reward, *comparison.held_out, "diversity"]
            rows.append(row | _scores(group, comparison.evals, names, list(SPLITS)))
    if not rows:
        return None
    columns = list(dict.fromkeys(["method", *varied, *(key for row in rows for key in row)]))
    note = f"Only the settings that differ are shown. {caption(comparison.seeds())}"
    return Sheet(title=comparison.title, note=note, columns=columns, rows=rows)


def across(comparisons: Sequence[Comparison]) -> Sheet | None:
    """Methods over several comparisons, in units that they share; None for a single one."""
    if len(comparisons) < 2:
        return None
    last = [last_rows(comparison.evals) for comparison in comparisons]
    found: dict[str, list[list[float]]] = {}
    for comparison, rows in zip(comparisons, last, strict=True):
        for label in _tuned(rows):
            gains = targets.gains(comparison, rows[rows["label"] == label], "unseen")
            if gains:
                found.setdefault(label, []).append(gains)
    rows_: list[dict[str, Value]] = [
        {"method": label, "gain": stratified(tasks), "comparisons": str(len(tasks))}
        for label, tasks in sorted(found.items())
    ]
    if not rows_:
        return None
    note = (
        "Gain over the base model on unseen prompts, in deviations between its pictures of one "
        "prompt, whose own error is not in the interval; "
        "seeds resampled within each comparison. Methods with different numbers of comparisons "
        f"are not comparable. {caption([n for c in comparisons for n in c.seeds()])}"
    )
    columns = ["method", "gain", "comparisons"]
    return Sheet(title="All comparisons", note=note, columns=columns, rows=rows_)


#: Every table of a comparison by file name; the first is printed.
TABLES: dict[str, Callable[[Comparison], Sheet | None]] = {
    "table": generalisation,
    "measures": measures,
    "costs": costs,
    "matched_compute": matched_compute,
    "time_to_target": time_to_target,
    "progress": progress.table,
    "pairs": pairs,
    "ablation": ablation,
}
