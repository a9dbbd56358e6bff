"""Rebuilds every figure, table and picture of directories of runs, and the page with them all."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

from PIL import Image

from analysis import gallery, preference, published, soups, tables
from analysis.collect import Comparison, Evaluated, collect
from analysis.figures import FIGURES, TABLES, made_of
from analysis.page import Section, page
from analysis.sheets import Sheet, latex, markdown, numbers
from analysis.style import Looks, encoded, looks


def write_report(*runs: Path, out: Path | None = None) -> str:
    """Write everything into ``out`` (the first directory of ``runs``); the main table as Markdown.

    Files: report.html; figures as PNG and PDF; tables as Markdown, CSV and LaTeX; grids of
    pictures. Records are only read, so it can be called again at any time, also while runs are
    going on. Raises ``ReportError`` when ``runs`` hold no records.
    """
    found, out = collect(*runs), out or runs[0]
    out.mkdir(parents=True, exist_ok=True)
    labels = {label for comparison in found.comparisons for label in comparison.labels}
    styles, sheets = looks(sorted(labels)), dict[str, list[Sheet]]()
    drawn = [c for c in found.comparisons if not c.evals.empty]
    sections = _all_runs(drawn, styles, out)
    sections += [_evaluation(evaluated, out) for evaluated in found.evaluated if evaluated.rows]
    for section in sections:
        for name, built in section.sheets.items():
            sheets.setdefault(name, []).append(built)
    notes = list(found.notes)
    others = {
        "across": tables.across(drawn),
        "preference": preference.results(runs, notes),
        "published": published.sheet(),
    }
    for name, sheet in others.items():
        if sheet:
            sheets[name] = [sheet]
            sections.append(Section(sheet.title, {name: sheet}))
    lines = "".join(f"- {note}\n" for note in notes)
    missing = f"\nNot (fully) in the table:\n\n{lines}" if notes else ""
    for name, several in sheets.items():
        write(out / f"{name}.csv", numbers(several).to_csv(index=False).encode())
        write(out / f"{name}.tex", "\n".join(map(latex, several)).encode())
        text = "\n".join(map(markdown, several))
        below = missing if name == "table" else ""
        write(out / f"{name}.md", (text + below).encode())
    write(out / "report.html", page(sections, notes).encode())
    main = "\n".join(map(markdown, sheets.get("table", []))) or "No evaluations yet.\n"
    return main + missing


def _all_runs(drawn: Sequence[Comparison], styles: Looks, out: Path) -> list[Section]:
    """One section per comparison; several are drawn side by side, a process each."""
    if len(drawn) < 2:
        return [_runs(comparison, styles, out, "") for comparison in drawn]
    workers = min(len(drawn), os.cpu_count() or 1)
    # Not forked: the caller may have threads.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    with _no_main(), pool:
        suffixes = [f"_{i}" for i in range(len(drawn))]
        return list(pool.map(_runs, drawn, repeat(styles), repeat(out), suffixes))


@contextmanager
def _no_main() -> Iterator[None]:
    """Processes that start within it do not run the main script once more; they need none of it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _runs(comparison: Comparison, styles: Looks, out: Path, suffix: str) -> Section:
    section = Section(comparison.title)
    for name, entry in made_of(TABLES, "comparison").items():
        if sheet := entry.make(comparison):
            section.sheets[name] = sheet
    if (comparison.evals["step"] > 0).any():
        for name, entry in made_of(FIGURES, "comparison").items():
            if figure := entry.make(comparison, styles):
                write(out / f"{name}{suffix}.pdf", encoded(figure, "pdf"))
                png = encoded(figure, "png")
                write(out / f"{name}{suffix}.png", png)
                section.figures[entry.about] = png
    grid = gallery.methods(comparison)
    _picture(section.grids, _said(gallery.methods), grid, out / f"methods{suffix}.png")
    for label in comparison.labels:
        name, grid = f"before_after_{slug(label)}{suffix}", gallery.before_after(comparison, label)
        _picture(section.folded, f"{label}: before and after.", grid, out / f"{name}.png")
        name, grid = (
            f"along_training_{slug(label)}{suffix}",
            gallery.along_training(comparison, label),
        )
        _picture(section.folded, f"{label}: along training.", grid, out / f"{name}.png")
    section.questions.extend(preference.questions(comparison))
    return section


def _evaluation(evaluated: Evaluated, out: Path) -> Section:
    section = Section(f"{evaluated.title} ({evaluated.info['kind']})")
    name = evaluated.path.name
    if entry := made_of(FIGURES, "evaluations").get(evaluated.info["kind"]):
        figure = entry.make(evaluated)
        png = encoded(figure, "png")
        write(out / f"{name}.pdf", encoded(figure, "pdf"))
        write(out / f"{name}.png", png)
        section.figures[entry.about] = png
    section.sheets["evaluate"] = soups.sheet(evaluated)
    grid = gallery.along_soup(evaluated)
    _picture(section.grids, _said(gallery.along_soup), grid, out / f"{name}_pictures.png")
    return section


def _picture(shown: dict[str, bytes], caption: str, grid: Image.Image | None, path: Path) -> None:
    """Keep a grid, if there is one, and show it on the page."""
    if grid:
        buffer = BytesIO()
        grid.save(buffer, "PNG", compress_level=3)
        shown[caption] = buffer.getvalue()
        write(path, shown[caption])


def _said(draw: Callable[..., object]) -> str:
    """The first line of its docstring: what a figure shows."""
    return (draw.__doc__ or "").partition("\n")[0]


def slug(label: str) -> str:
    """A label as part of a file's name."""
    return re.sub(r"[^\w.=-]+", "-", label).strip("-")


def write(path: Path, content: bytes) -> None:
    """Replace in one move: a reader, or another run that ends now, never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with temporary.open("xb") as file:  # never through a link
        file.write(content)
    temporary.replace(path)
