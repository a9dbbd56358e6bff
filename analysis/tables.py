"""The table of results: one DataFrame, written as Markdown, CSV and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd

from analysis.collect import Comparison
from analysis.statistics import Estimate, last_rows, over_seeds

BASE = "base model"
SPLITS = {"train": "training", "unseen": "unseen"}
COSTS = {  # header -> (column of the evaluations, divisor, format)
    "optimizer steps": ("step", 1.0, ",.0f"),
    "reward queries": ("reward_queries", 1.0, ",.0f"),
    "NFE": ("nfe", 1.0, ",.0f"),
    "TFLOP": ("flops", 1e12, ",.4g"),
    "seconds": ("seconds", 1.0, ",.0f"),
}


def table(comparison: Comparison, labels: list[str]) -> pd.DataFrame:
    """Rows: the base model, then ``labels``, best first by the reward on unseen prompts.

    Cells: ``Estimate`` over seeds at the last checkpoint.

    Columns: the reported train reward, each held-out reward and diversity, on training and unseen
    prompts; then what it cost (per run) and the number of seeds.
    """
    evals = comparison.evals
    last = last_rows(evals)
    groups = {BASE: evals[evals["step"] == 0]}
    groups |= {label: last[last["label"] == label] for label in labels}
    splits = [split for split in SPLITS if split in set(evals["split"])]
    rows = {}
    for label, group in groups.items():
        if group.empty:
            continue
        row = {}
        for name in (comparison.reward, *comparison.held_out, "diversity"):
            for split in splits:
                row[f"{name}, {SPLITS[split]}"] = over_seeds(group[group["split"] == split], name)
        # Counters are cumulative: of the splits evaluated at one step, the last has all of it.
        spent = group.groupby(["cell", "seed"], as_index=False)[[c for c, *_ in COSTS.values()]]
        spent = spent.max()
        for header, (column, divisor, _) in COSTS.items():
            values = [] if label == BASE else (spent[column] / divisor).tolist()
            mean = sum(values) / len(values) if values else math.nan
            row[header] = Estimate(value=mean, low=math.nan, high=math.nan, seeds=len(values))
        seeds = group["seed"].nunique()
        row["seeds"] = Estimate(value=seeds, low=math.nan, high=math.nan, seeds=seeds)
        rows[label] = row
    decisive = f"{comparison.reward}, {SPLITS[splits[-1]]}" if splits else ""

    def rank(label: str) -> tuple[bool, bool, float]:
        reward = rows[label][decisive].value
        return label != BASE, math.isnan(reward), -reward

    ranked = sorted(rows, key=rank)
    return pd.DataFrame.from_dict({k: rows[k] for k in ranked}, orient="index").rename_axis(
        "method"
    )


def _text(header: str, estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "-" if estimate.seeds == 0 else "nan"
    style = COSTS[header][2] if header in COSTS else ".0f" if header == "seeds" else ".3f"
    value = format(estimate.value, style)
    if math.isnan(estimate.low):
        return value
    return f"{value} [{estimate.low:{style}}, {estimate.high:{style}}]"


def _cells(frame: pd.DataFrame, escape: Callable[[str], str]) -> list[list[str]]:
    """Header and rows as text, each piece passed through ``escape``."""
    lines = [["method", *frame.columns]]
    for label, row in frame.iterrows():
        lines.append([str(label), *(_text(str(name), row[name]) for name in frame.columns)])
    return [[escape(piece) for piece in line] for line in lines]


def markdown(frame: pd.DataFrame) -> str:
    """A pipe table, padded so that it also reads in a terminal."""
    lines = _cells(frame, lambda text: text.replace("|", "\\|"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    text = ""
    for first, *rest in (lines[0], rules, *lines[1:]):
        padded = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        text += f"| {' | '.join([first.ljust(widths[0]), *padded])} |\n"
    return text


def latex(frame: pd.DataFrame) -> str:
    """A booktabs tabular."""
    header, *lines = [" & ".join(cells) + r" \\" for cells in _cells(frame, _latex_escape)]
    columns = "l" + "r" * len(frame.columns)
    body = [header, r"\midrule", *lines]
    inner = "\n".join([r"\toprule", *body, r"\bottomrule"])
    return f"\\begin{{tabular}}{{{columns}}}\n{inner}\n\\end{{tabular}}\n"


def _latex_escape(text: str) -> str:
    return "".join(f"\\{c}" if c in "&%$#_{}" else c for c in text)


def numbers(comparison: Comparison, frame: pd.DataFrame) -> pd.DataFrame:
    """The same in plain numbers for CSV; intervals get columns ``... low`` and ``... high``."""
    rows = []
    for label, row in frame.iterrows():
        line: dict[str, object] = {
            "task": comparison.task, "train reward": comparison.reward,
            "backbone": comparison.backbone, "budget": comparison.budget,
            "budget unit": comparison.budget_unit, "method": label,
        }  # fmt: skip
        for name in frame.columns:
            line[name] = row[name].value
            if name not in COSTS and name != "seeds":
                line |= {f"{name} low": row[name].low, f"{name} high": row[name].high}
        rows.append(line)
    return pd.DataFrame(rows)
