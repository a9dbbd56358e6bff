"""The blind side-by-side test: which pairs are shown, and what the answers say.

The page shows two pictures of one prompt from the same noise, in random order and without the
methods' names, and saves the answers as JSON. Such files, put into the directory of runs as
``preferences*.json``, are summarised in the report.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from analysis.collect import Comparison
from analysis.gallery import LARGEST, shown, steps
from analysis.records import Note, ReportError, read_json
from analysis.sheets import Sheet, Value
from analysis.statistics import win_rate
from analysis.style import BASE

PER_PAIR = 12  # questions for each pair of methods


def questions(comparison: Comparison) -> list[dict[str, str]]:
    """Pairs of pictures on unseen prompts: ``prompt``, methods ``one`` and ``two``, two pictures.

    Every pair of methods and the base model, from the lowest seed with pictures; the first
    pictures in recorded order, those of different prompts first.
    """
    sources: dict[str, Any] = {}
    for label in comparison.labels:
        cell = shown(comparison, label)
        rows = list(steps(comparison, cell, "unseen").values()) if cell else []
        if len(rows) > 1:
            sources.setdefault(BASE, rows[0])
            sources[label] = rows[-1]
    asked = []
    for one, two in itertools.combinations(sources, 2):
        for index, prompt in _spread(sources[one].records)[:PER_PAIR]:
            pictures = [picture(sources[name].at(index)) for name in (one, two)]
            if all(pictures):
                first, second = map(str, pictures)
                asked.append({"prompt": prompt, "one": one, "two": two, "id": str(index),
                              "first": first, "second": second})  # fmt: skip
    return asked


def _spread(records: Sequence[Any]) -> list[tuple[int, str]]:
    """(index, prompt): the first picture of every prompt, then the second ones, and so on."""
    seen: dict[str, int] = {}
    order = []
    for index, record in enumerate(records):
        prompt = str(record["prompt"])
        seen[prompt] = seen.get(prompt, 0) + 1
        order.append((seen[prompt], index, prompt))
    return [(index, prompt) for _, index, prompt in sorted(order)]


@lru_cache(maxsize=10_000)  # a method meets several others
def picture(path: Path) -> str | None:
    """A picture of at most ``LARGEST`` pixels as a data URI; None if it cannot be read."""
    try:
        image = Image.open(path).convert("RGB")
    except OSError:
        return None
    image.thumbnail((LARGEST, LARGEST))
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def results(roots: Sequence[Path], notes: list[Note]) -> Sheet | None:
    """Win rates from all saved answers; files that are none are noted."""
    wins: dict[tuple[str, str, str], list[float]] = {}
    for path in sorted(path for root in roots for path in root.glob("preferences*.json")):
        try:
            answers = read_json(path)["answers"]
            rows = [(a["comparison"], a["one"], a["two"], a["choice"]) for a in answers]
        except (ReportError, KeyError, TypeError) as error:
            notes.append(Note("foreign", path.name, f"not a file of answers ({error})"))
            continue
        for title, one, two, choice in rows:
            first, second = sorted((str(one), str(two)))
            score = 0.5 if choice == "tie" else float(choice == first)
            wins.setdefault((str(title), first, second), []).append(score)
    if not wins:
        return None
    table: list[dict[str, Value]] = [
        {
            "comparison": title,
            "preferred": f"{first} over {second}",
            "win rate": win_rate(sum(scores), len(scores)),
            "answers": str(len(scores)),
        }
        for (title, first, second), scores in sorted(wins.items())
    ]
    note = "Blind side-by-side answers; ties count one half; 95 % Wilson interval over answers."
    return Sheet(title="Human preference", note=note, columns=list(table[0]), rows=table)
