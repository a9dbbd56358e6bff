"""What a method gains from rewards that say nothing: its placebo's share of every gain.

A placebo is the same method with the same settings, its rewards dealt out at random among the
pictures of a batch. What it gains comes from the training as such; a gain is *learnt* only above
it.
"""

from __future__ import annotations

from analysis.changes import base_rows, changes
from analysis.collect import Comparison
from analysis.statistics import Estimate, between
from analysis.targets import last_kept

#: A placebo may have fewer runs than what it is compared with.
ENOUGH = 3


def above(comparison: Comparison, label: str, split: str, column: str) -> Estimate | None:
    """How much more a method gains than its placebo; None if there is none."""
    last, base = last_kept(comparison.evals), base_rows(comparison.evals, split)
    rows = last[last["split"] == split]
    mine, theirs = (
        rows[rows["label"] == name] for name in (label, comparison.placebo(label) or "")
    )
    if mine.empty or theirs.empty:
        return None
    one, other = (changes(found, base, column).layout for found in (mine, theirs))
    return between(one, other, ENOUGH)


def rose(comparison: Comparison, label: str, split: str) -> bool:
    """Whether a method is above its placebo, for certain; True if there is none to tell."""
    more = above(comparison, label, split, comparison.reward)
    return more is None or more.low > 0


def said(comparison: Comparison, label: str, split: str, column: str) -> str:
    """Whether a gain is learnt, in a few words."""
    more = above(comparison, label, split, column)
    if more is None:
        return "no placebo"
    return "yes" if more.low > 0 else "no" if more.high < 0 else "not shown"
