"""The report as one self-contained HTML page: no network, no other file."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape

from analysis.records import Note
from analysis.sheets import Sheet

SIDES = ("first", "second")
#: What stands above the tables of a comparison.
HEADS = {
    "table": "Rewards: training and unseen prompts",
    "measures": "What a reward alone hides",
    "costs": "What a run took",
    "matched_compute": "Reward at equal compute, data and time",
    "time_to_target": "Compute, data and time to the target",
    "pairs": "Method against method",
    "ablation": "Variants of one method",
}


@dataclass(frozen=True)
class Section:
    """A chapter of the page: tables, PNG files by caption, and pairs of the preference test.

    ``grids`` of pictures follow the tables; ``folded`` ones are shown on request.
    """

    title: str
    sheets: dict[str, Sheet] = field(default_factory=dict)
    figures: dict[str, bytes] = field(default_factory=dict)
    grids: dict[str, bytes] = field(default_factory=dict)
    folded: dict[str, bytes] = field(default_factory=dict)
    questions: list[dict[str, str]] = field(default_factory=list)


def page(sections: Sequence[Section], notes: Sequence[Note]) -> str:
    """The HTML text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"uri": _uri, "number": _number}
    asked = [(section.title, question) for section in sections for question in section.questions]
    uris = dict.fromkeys(question[side] for _, question in asked for side in SIDES)
    number = {uri: i for i, uri in enumerate(uris)}  # a picture is in several questions
    questions = [
        question | {"comparison": title} | {side: number[question[side]] for side in SIDES}
        for title, question in asked
    ]
    template = environment.get_template("page.html", globals={"HEADS": HEADS})
    text = template.render(sections=sections, notes=notes, questions=questions, pictures=list(uris))
    return text.lstrip()


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _number(text: str) -> str:
    """What a cell sorts by: the number it starts with, or nothing."""
    match = re.match(r"-?[\d,]*\.?\d+(e[+-]?\d+)?", text)
    return match.group().replace(",", "") if match else ""
