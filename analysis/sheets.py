"""A table of results, written as Markdown, LaTeX and CSV from one source."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from analysis.statistics import Estimate

Value = Estimate | str


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
        style = self.styles.get(column, ".3f")
        number = format(value.value, style)
        if math.isnan(value.low):
            return number
        return f"{number} [{value.low:{style}}, {value.high:{style}}]"

    def lines(self, escape: Callable[[str], str] = str) -> list[list[str]]:
        """Header and rows as text, each piece passed through ``escape``."""
        rows = [[self.text(c, row.get(c, "-")) for c in self.columns] for row in self.rows]
        return [[escape(piece) for piece in line] for line in ([*self.columns], *rows)]


def point(value: float, seeds: int = 1) -> Estimate:
    """A number without an interval."""
    return Estimate(value=value, seeds=seeds)


def markdown(sheet: Sheet) -> str:
    """Title, pipe table (padded so that it also reads in a terminal) and note."""
    lines = sheet.lines(lambda text: text.replace("|", "\\|"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    text = ""
    for first, *rest in (lines[0], rules, *lines[1:]):
        padded = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        text += f"| {' | '.join([first.ljust(widths[0]), *padded])} |\n"
    return f"{sheet.title}\n\n{text}\n{sheet.note}\n"


def latex(sheet: Sheet) -> str:
    """A booktabs tabular, with the title as a comment."""
    header, *lines = [" & ".join(cells) + r" \\" for cells in sheet.lines(_latex_escape)]
    inner = "\n".join([r"\toprule", header, r"\midrule", *lines, r"\bottomrule"])
    columns = "l" + "r" * (len(sheet.columns) - 1)
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
