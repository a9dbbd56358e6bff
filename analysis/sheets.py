"""A table of results, written as Markdown, LaTeX and CSV from one source."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from analysis.statistics import Estimate

Value = Estimate | str


def printed(value: Estimate, style: str) -> str:
    """A number with its interval, if it has one; what is only bounded is said to be."""
    sign = {"at least": ">= ", "at most": "<= "}.get(value.bound, "")
    number = f"{sign}{value.value:{style}}"
    if math.isnan(value.low):
        return number
    low, high = ("open" if math.isinf(end) else f"{end:{style}}" for end in (value.low, value.high))
    return f"{number} [{low}, {high}]"


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Rows of estimates or text; ``styles`` has the format of a column's numbers (else ``.3f``)."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Value]]
    styles: Mapping[str, str] = field(default_factory=dict)

    def text(self, column: str, value: Value) -> str:
        """A cell as it is printed; ``-`` where there is nothing."""
        if isinstance(value, str):
            return value
        if math.isnan(value.value):
            return "-" if value.seeds == 0 else "nan"
        return printed(value, self.styles.get(column, ".3f"))

    def lines(self, escape: Callable[[str], str] = str) -> list[list[str]]:
        """Header and rows as text, each piece passed through ``escape``."""
        rows = [[self.text(c, row.get(c, "-")) for c in self.columns] for row in self.rows]
        return [[escape(piece) for piece in line] for line in ([*self.columns], *rows)]

    def words(self) -> list[bool]:
        """For each column whether it holds words, which read from the left, and no number."""
        rows = self.lines()[1:]
        return [
            number == 0 or not any(is_number(line[number]) for line in rows)
            for number in range(len(self.columns))
        ]


def is_number(text: str) -> bool:
    """Whether a cell starts with a number."""
    return bool(re.match(r"([<>]= )?(-?[\d.,]*\d|-?inf\b)", text))


def point(value: float, seeds: int = 1) -> Estimate:
    """A number without an interval."""
    return Estimate(value=value, seeds=seeds)


def markdown(sheet: Sheet) -> str:
    """Title, pipe table (padded so that it also reads in a terminal) and note."""
    lines = sheet.lines(lambda text: text.replace("|", "\\|"))
    words = sheet.words()
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rules = [
        "-" * width if left else "-" * (width - 1) + ":"
        for width, left in zip(widths, words, strict=True)
    ]
    text = ""
    for line in (lines[0], rules, *lines[1:]):
        padded = [
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, words, strict=True)
        ]
        text += f"| {' | '.join(padded)} |\n"
    title = f"{sheet.title}\n" if sheet.title else ""
    return "\n".join(filter(None, (title, text, sheet.note))) + "\n"


def latex(sheet: Sheet) -> str:
    """A booktabs tabular, with the title as a comment."""
    header, *lines = [" & ".join(cells) + r" \\" for cells in sheet.lines(_latex_escape)]
    inner = "\n".join([r"\toprule", header, r"\midrule", *lines, r"\bottomrule"])
    columns = "".join("l" if left else "r" for left in sheet.words())
    return f"% {sheet.title}\n\\begin{{tabular}}{{{columns}}}\n{inner}\n\\end{{tabular}}\n"


_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def _latex_escape(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)


def numbers(sheets: Sequence[Sheet]) -> pd.DataFrame:
    """All rows for CSV in plain numbers; intervals get columns ``... low`` and ``... high``."""
    rows = []
    for sheet in sheets:
        for row in sheet.rows:
            line: dict[str, object] = {"comparison": sheet.title}
            for column in sheet.columns:
                value = row.get(column, "-")
                if isinstance(value, str):
                    line[column] = value
                    continue
                line[column] = value.value
                if not math.isnan(value.low):
                    line |= {f"{column} low": value.low, f"{column} high": value.high}
            rows.append(line)
    return pd.DataFrame(rows)
