"""Rebuilds every figure and table of a directory of runs."""

from __future__ import annotations

import os
import re
from io import BytesIO
from pathlib import Path

import pandas as pd

from analysis import curves, tables
from analysis.collect import Comparison, collect
from analysis.gallery import gallery
from analysis.statistics import caption


def write_report(out: Path) -> str:
    """Write all derived files into the directory of runs ``out`` and return the Markdown table.

    Files: reward_curve.png and .pdf, overoptimisation.png, table.md, table.csv, table.tex and
    before_after_<method>.png. Records are only read, so it can be called again at any time, also
    while runs are going on. Raises ``ReportError`` when ``out`` holds no runs.
    """
    comparisons, failed = collect(out)
    notes = [f"- failed: {name}: {reason}" for name, reason in failed.items()]
    for comparison in comparisons:
        for cell in comparison.cells:
            if not cell.finished:
                notes.append(f"- unfinished: {cell.path.name}: optimizer step {cell.last_step}")
    drawn = [c for c in comparisons if not c.evals.empty and (c.evals["step"] > 0).any()]
    labels = {cell.label for comparison in comparisons for cell in comparison.cells}
    styles = curves.looks(sorted(labels))
    parts, sheets, latex = [], [], []
    for comparison in comparisons:
        if comparison.evals.empty:
            continue
        frame = tables.table(comparison, list(styles))
        parts.append(_section(comparison, frame))
        sheets.append(tables.numbers(comparison, frame))
        latex.append(f"% {comparison.title}\n{tables.latex(frame)}")
        for label in styles:
            grid = gallery(comparison, label)
            if grid:
                several = f"_{comparisons.index(comparison)}" if len(comparisons) > 1 else ""
                name = re.sub(r"[^\w.=-]+", "-", label).strip("-")
                buffer = BytesIO()
                grid.save(buffer, "PNG")
                _write(out / f"before_after_{name}{several}.png", buffer.getvalue())
    if drawn:
        for name, figure in (
            ("reward_curve", curves.reward_curve(drawn, styles)),
            ("overoptimisation", curves.overoptimisation(drawn, styles)),
        ):
            for kind in ("png", "pdf") if name == "reward_curve" else ("png",):
                buffer = BytesIO()
                dated = {"CreationDate": None} if kind == "pdf" else None  # same bytes again
                figure.savefig(buffer, format=kind, dpi=200, metadata=dated)
                _write(out / f"{name}.{kind}", buffer.getvalue())
    text = "\n".join(parts or ["No evaluations yet.\n"])
    if notes:
        text += "\nNot (fully) in the table:\n\n" + "\n".join(notes) + "\n"
    sheet = pd.concat(sheets, ignore_index=True) if sheets else pd.DataFrame()
    _write(out / "table.csv", sheet.to_csv(index=False).encode())
    _write(out / "table.tex", "\n".join(latex).encode())
    _write(out / "table.md", text.encode())
    return text


def _section(comparison: Comparison, frame: pd.DataFrame) -> str:
    seeds = comparison.evals.groupby("label")["seed"].nunique().tolist()
    units = "; ".join(f"{k}: {v}" for k, v in comparison.units.items() if v)
    note = f"Ranked by the reward on unseen prompts. Units: {units}. {caption(seeds)}"
    return f"{comparison.title}\n\n{tables.markdown(frame)}\n{note}\n"


def _write(path: Path, content: bytes) -> None:
    """Replace in one move: a reader, or another run that ends now, never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
