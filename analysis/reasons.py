"""A claim's reason may say no number that the records do not show.

Reasons are typed by hand and stay when runs are repeated; a number in one must stand, to its own
digits, in the tables and findings drawn from the records, or among what was published.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from analysis.records import ReportError

NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")


def numbers(text: str, names: Iterable[str] = ()) -> list[str]:
    """The numbers in a text, but not those in ``names`` (``K = 10``)."""
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, " ")
    return NUMBER.findall(text)


def check(where: str, why: str, shown: str, names: Iterable[str] = ()) -> None:
    """Raises ReportError for a number in ``why`` that ``shown`` does not have."""
    known = [float(number.replace(",", "")) for number in NUMBER.findall(shown)]
    for number in numbers(why, names):
        value, digits = float(number.replace(",", "")), len(number.partition(".")[2])
        if not any(abs(round(other, digits) - value) < 1e-9 for other in known):
            raise ReportError(
                f"{where}: why says {number}, which none of its findings and tables shows: take it "
                "out, or draw a table that has it"
            )
