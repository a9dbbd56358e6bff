"""The tables about runs. Each takes one comparison and gives a Sheet, or None without data."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from analysis import published, targets
from analysis.collect import Comparison, settings
from analysis.records import BUDGETS, MEASURES, SPLITS, natural
from analysis.sheets import Sheet, Value, point
from analysis.statistics import (
    Estimate,
    caption,
    counted,
    last_rows,
    over_seeds,
    paired_difference,
    probability_of_improvement,
    stratified,
    summarise,
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
    names += ["diversity"] * bool(comparison.evals["diversity"].notna().any())
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
            rows.append({"method": label, **_scores(group, names, splits), "seeds": seeds})
    decisive = last[last["split"] == splits[-1]].groupby("label")
    ends = {label: over_seeds(group, comparison.reward).value for label, group in decisive}
    rows.sort(key=lambda row: _rank(ends.get(row["method"], math.nan)))
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


def _scores(group: pd.DataFrame, names: Sequence[str], splits: list[str]) -> dict[str, Value]:
    return {
        f"{name}, {SPLITS[split]}": over_seeds(group[group["split"] == split], name)
        for name in names
        for split in splits
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
        for level in levels(float(evals[column].max()) / divisor):
            header = f"{level:,.4g} {unit}"
            columns.append(header)
            for label, row in rows.items():
                row[header] = _at(runs[label], column, level * divisor, comparison.reward)
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


def _at(runs: Sequence[pd.DataFrame], column: str, level: float, reward: str) -> Estimate:
    found = [targets.at_cost(run, column, reward, level) for run in runs]
    values = [value for value in found if not math.isnan(value)]
    return summarise(values) if len(values) == len(found) else point(math.nan, 0)


def _tuned(evals: pd.DataFrame) -> list[str]:
    return sorted(set(evals.loc[evals["step"] > 0, "label"]), key=natural)


def time_to_target(comparison: Comparison) -> Sheet | None:
    """How many runs reached the target, and the median of what that took."""
    goal = targets.target(comparison)
    if goal is None:
        return None
    rows: list[dict[str, Value]] = []
    for label in sorted(set(comparison.evals["label"]), key=natural):
        row: dict[str, Value] = {"method": label}
        for guarded, word in ((False, "reward alone"), (True, "guarded")):
            for kind in ("flops", "queries", "seconds"):
                column, divisor, unit = BUDGETS[kind]
                spent = targets.costs(comparison, label, column, goal, guarded)
                reached = sum(map(math.isfinite, spent))  # the same for every kind
                row[f"reached, {word}"] = f"{reached} of {len(spent)}"
                median = float(np.median(spent)) / divisor if spent else math.inf
                row[f"{unit}, {word}"] = "never" if math.isinf(median) else f"{median:,.4g}"
        rows.append(row)
    floors = ", ".join(f"{name} >= {floor:.3g}" for name, floor in goal.floors.items())
    note = (
        f"Target: {comparison.reward} >= {goal.level:.4g} on training prompts (base model plus "
        f"{targets.EFFECT:g} standard deviations of its pictures). Guarded: at an evaluation with "
        f"{floors}. Medians over runs; a run that never got there counts as infinite."
    )
    return Sheet(title=comparison.title, note=note, columns=list(rows[0]), rows=rows)


def pairs(comparison: Comparison) -> Sheet | None:
    """Each pair of methods: difference on common noise, and probability of improvement."""
    last = last_rows(comparison.evals)
    last = last[last["split"] == "unseen"]
    rows: list[dict[str, Value]] = []
    for one, other in itertools.combinations(_tuned(last), 2):
        mine, theirs = (last[last["label"] == label] for label in (one, other))
        seeds = [rows.groupby("seed")[comparison.reward].mean() for rows in (mine, theirs)]
        rows.append(
            {
                "methods": f"{one} - {other}",
                "difference": paired_difference(_differences(mine, theirs, comparison.reward)),
                "P(better)": probability_of_improvement([seeds[0].tolist()], [seeds[1].tolist()]),
            }
        )
    if not rows:
        return None
    note = (
        f"{comparison.reward} on unseen prompts, last checkpoints. Difference: same prompts and "
        "noise, averaged over seeds; its 95 % interval is over prompts, for these runs. "
        "P(better): how often a run of the first beats one of the second, with an interval over "
        f"seeds from 5 of each on. {counted(comparison.seeds())}."
    )
    columns = ["methods", "difference", "P(better)"]
    return Sheet(title=comparison.title, note=note, columns=columns, rows=rows)


def _differences(mine: pd.DataFrame, theirs: pd.DataFrame, reward: str) -> list[list[float]]:
    """Per prompt, the differences of its pictures, each first averaged over a method's runs."""
    means = []
    for rows in (mine, theirs):
        runs = [[p["rewards"][reward] for p in pictures] for pictures in rows["per_image"]]
        means.append(np.mean(runs, axis=0) if len({len(run) for run in runs}) == 1 else None)
    prompts = [str(p["prompt"]) for p in mine["per_image"].iloc[0]]
    if means[0] is None or means[1] is None or len(means[0]) != len(means[1]):
        return []
    by_prompt: dict[str, list[float]] = {}
    for prompt, difference in zip(prompts, means[0] - means[1], strict=True):
        by_prompt.setdefault(prompt, []).append(float(difference))
    return list(by_prompt.values())


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
            rows.append(row | _scores(group, names, list(SPLITS)))
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
        "Gain over the base model on unseen prompts, in standard deviations of its pictures; "
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
    "pairs": pairs,
    "ablation": ablation,
}
