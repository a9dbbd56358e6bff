"""The registry of all figures and tables: what each is called, and what it is made of.

A suite's ``figures`` and ``tables`` are these names; the files they are drawn to are called so too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from analysis import curves, growth, headline, progress, soups, tables


@dataclass(frozen=True)
class Entry:
    """A figure or a table. ``make`` returns None where there is too little to show."""

    of: Literal["comparison", "pair", "evaluations", "speed"]
    """A comparison; a comparison and the labels of its two arms; evaluations of checkpoints that
    differ in seed alone; the measured speed."""
    make: Callable[..., Any]
    """Figures of comparisons and pairs also take the looks of the labels, after the comparison."""

    @property
    def about(self) -> str:
        """What it shows, in a sentence."""
        return (self.make.__doc__ or "").partition("\n")[0]


FIGURES = {
    "reward_curve": Entry("comparison", curves.reward_curve),
    "cost_curves": Entry("comparison", curves.cost_curves),
    "overoptimisation": Entry("comparison", curves.overoptimisation),
    "pareto": Entry("comparison", curves.pareto),
    "time_to_target": Entry("comparison", curves.time_to_target),
    "progress": Entry("comparison", progress.figure),
    "headline": Entry("pair", headline.figure),
    "sweep": Entry("evaluations", soups.sweep),
    "parts": Entry("evaluations", soups.early_late),
    "growth": Entry("speed", growth.growth),
}

TABLES = {name: Entry("comparison", build) for name, build in tables.TABLES.items()}
TABLES["headline"] = Entry("pair", headline.sheet)


def made_of(known: dict[str, Entry], what: str) -> dict[str, Entry]:
    """Those that are made of this."""
    return {name: entry for name, entry in known.items() if entry.of == what}
