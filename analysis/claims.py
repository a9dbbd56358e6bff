"""What a source claims, measured on our runs.

A claim of a suite's TOML file has ``paper`` (its words), ``published`` (quantities of
``results/published.toml``), ``measure`` (a function below), what that needs (``arms``, ``split``,
``of``, ...) and ``why``, if we differ, with ``see``, where its numbers are (``reasons.py``). A
measure gives one finding per reward; it is made so that the claim says: above 0, or for
``speedup`` above ``times``.

All findings of one file are a family: a claim holds or fails where the finding is decided after
Holm's correction for all of them. The suite's ``primary`` finding stands outside its family.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis import headline, placebo, published
from analysis.changes import base_rows, change, difference
from analysis.collect import Comparison, Evaluated
from analysis.records import BUDGETS, SPLITS
from analysis.sheets import Sheet, Value, point
from analysis.soups import apart
from analysis.statistics import LEVEL, NAN, Estimate, estimate, holm
from analysis.targets import last_kept

Claim = Mapping[str, Any]
#: What is computed instead of trained may be so many times more or less than what was published.
FACTOR = 1.5


@dataclass(frozen=True, kw_only=True)
class Data:
    """All there is for one table or figure: runs, evaluated checkpoints, bytes by rung."""

    rewards: Sequence[str]
    comparisons: Sequence[Comparison]
    evaluated: Sequence[Evaluated]
    memory: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A number and what it says about the claim.

    ``p`` of the number against ``above``, NaN without an interval; ``corrected`` for its family.
    ``said`` is the verdict where there is nothing to test. ``learnt``: see ``placebo.said``.
    """

    what: str
    value: Estimate
    reward: str = ""
    above: float = 0.0
    p: float = NAN
    corrected: float = NAN
    primary: bool = False
    said: str = ""
    learnt: str = ""

    @property
    def verdict(self) -> str:
        """Holds, fails or undecided."""
        if self.said:
            return self.said
        word = "holds" if self.value.value > self.above else "fails"
        if math.isnan(self.p):
            word = "undecided" if self.value.value == self.above else word
            return f"{word}, without an interval"
        return word if self.corrected <= 1 - LEVEL else "undecided"


def findings(claim: Claim, data: Data) -> list[Finding]:
    """What we see; empty without data."""
    found = MEASURES[claim["measure"]](claim, data)
    return [one for one in found if one.said or not math.isnan(one.value.value)]


def family(
    claims: Sequence[Claim], data: Data, primary: Mapping[str, Any] | None = None
) -> list[list[Finding]]:
    """The findings of each claim, corrected for all of them.

    ``primary`` names one beforehand (``claim``, counted from 1, and ``reward``): not corrected.
    """
    found = [findings(claim, data) for claim in claims]
    first = (primary or {}).get("claim"), (primary or {}).get("reward")
    marked = [
        [dataclasses.replace(one, primary=first == (number, one.reward)) for one in several]
        for number, several in enumerate(found, 1)
    ]
    corrected = iter(holm([NAN if one.primary else one.p for many in marked for one in many]))
    return [
        [
            dataclasses.replace(one, corrected=one.p if one.primary else p)
            for one, p in zip(many, corrected, strict=False)
        ]
        for many in marked
    ]


def _tested(what: str, value: Estimate, **more: Any) -> Finding:
    return Finding(what=what, value=value, p=value.p(), **more)


def ends_higher(claim: Claim, data: Data) -> Iterator[Finding]:
    """How much more the first arm ends with than the second, seed by seed; under the guard."""
    for comparison in data.comparisons:
        column, split = claim.get("of", comparison.reward), claim["split"]
        one, other = (_ends(comparison, label, split) for label in claim["arms"])
        base = base_rows(comparison.evals, split)
        value = difference(one, other, base, column)
        first, second = claim["arms"]
        what = f"{column}{_on(comparison, column)}, {SPLITS[split]}: {first} - {second}"
        yield _tested(what, value, reward=comparison.reward)


def gain(claim: Claim, data: Data) -> Iterator[Finding]:
    """How much more an arm ends with than the base model; under the guard."""
    for comparison in data.comparisons:
        for label in claim["arms"]:
            yield _gain(comparison, label, claim["split"], comparison.reward)


def parts_of_mixture(claim: Claim, data: Data) -> Iterator[Finding]:
    """The gain in each reward of a mixture that was trained on."""
    for comparison in (c for c in data.comparisons if "*" in c.reward):
        for part in (reward for reward in data.rewards if reward in comparison.evals):
            if part != comparison.reward:
                yield _gain(comparison, claim["arms"][0], claim["split"], part)


def speedup(claim: Claim, data: Data) -> Iterator[Finding]:
    """How many times less the first arm needs for what the second ends with.

    In the kind of cost that the budget is of: queries, FLOPs and seconds are one finding.
    """
    fast, slow = claim["arms"]
    for comparison in data.comparisons:
        kind = comparison.cells[0].info["budget"]["kind"]
        found = headline.speedup(comparison, fast, slow, kind, claim["split"])
        times = float(claim.get("times", 1))
        what = f"{comparison.reward}, {SPLITS[claim['split']]}: {BUDGETS[kind][2]}, times less"
        yield Finding(
            what=what,
            value=found.times,
            reward=comparison.reward,
            above=times,
            p=found.p(times),
            said=f"undecided: {found.said}" if found.said else "",
            learnt=placebo.said(comparison, slow, claim["split"], comparison.reward),
        )


def soup(claim: Claim, data: Data) -> Iterator[Finding]:
    """How much more the mix with this coefficient has of either reward than the base model."""
    sweeps = [e for e in data.evaluated if e.info["kind"] == "sweep"]
    for reward in data.rewards:
        for split, words in SPLITS.items():
            pairs = []
            for rows in (e.rows for e in sweeps if reward in e.rows[0]["rewards"]):
                chosen = [r for r in rows if r["split"] == split]
                mixed = [r for r in chosen[1:] if r["coefficients"][-1] == claim["at"]]
                pairs += [(r, chosen[0]) for r in mixed]
            value = estimate(apart(pairs, reward))
            yield _tested(f"{reward}, {words}: soup - base model", value, reward=reward)


def late(claim: Claim, data: Data) -> Iterator[Finding]:
    """How much more of its reward a checkpoint keeps in the last half of the chain alone than in
    the first half alone."""
    yield from _halves(data.rewards[claim["reward"]], data, "last", "first")


def early(claim: Claim, data: Data) -> Iterator[Finding]:
    """The opposite of ``late``."""
    yield from _halves(data.rewards[claim["reward"]], data, "first", "last")


def memory(claim: Claim, data: Data) -> Iterator[Finding]:
    """Computed, not trained: within ``FACTOR`` of the published number."""
    if data.memory:
        ours = data.memory[claim["rung"]] / 1e9
        (theirs,) = (
            v["value"] for v in published.values() if [v["quantity"]] == claim["published"]
        )
        near = 1 / FACTOR <= ours / theirs <= FACTOR
        said = f"{'within' if near else 'not within'} a factor of {FACTOR:g}"
        yield Finding(what=f"GB, computed: {claim['rung']}", value=point(ours), said=said)


MEASURES: dict[str, Callable[[Claim, Data], Iterator[Finding]]] = {
    "difference": ends_higher,
    "gain": gain,
    "parts_of_mixture": parts_of_mixture,
    "speedup": speedup,
    "soup": soup,
    "late": late,
    "early": early,
    "memory": memory,
}


def _ends(comparison: Comparison, label: str, split: str) -> pd.DataFrame:
    last = last_kept(comparison.evals)
    return last[(last["label"] == label) & (last["split"] == split)]


def _gain(comparison: Comparison, label: str, split: str, column: str) -> Finding:
    rows = _ends(comparison, label, split)
    what = f"{column}{_on(comparison, column)}, {SPLITS[split]}: {label} - base model"
    if rows.empty:
        return Finding(what=what, value=Estimate(value=NAN, seeds=0))
    value = change(rows, base_rows(comparison.evals, split), column)
    learnt = placebo.said(comparison, label, split, column)
    return _tested(what, value, reward=comparison.reward, learnt=learnt)


def _on(comparison: Comparison, column: str) -> str:
    return "" if column == comparison.reward else f" (trained on {comparison.reward})"


def _halves(reward: str, data: Data, more: str, less: str) -> Iterator[Finding]:
    for split, words in SPLITS.items():
        pairs = []
        for one in (e for e in data.evaluated if e.info["kind"] == "parts"):
            if one.info["checkpoints"][0]["reward"] == reward:
                rows = {r["name"]: r for r in one.rows if r["split"] == split}
                pairs.append((rows[f"{more} 50%"], rows[f"{less} 50%"]))
        what = f"{reward}, {words}: {more} half - {less} half"
        yield _tested(what, estimate(apart(pairs, reward)), reward=reward)


def sheet(rows: Sequence[tuple[str, Finding]]) -> Sheet:
    """Findings, each with the directory of results it is from if there are several."""
    lines: list[Mapping[str, Value]] = []
    for where, one in rows:
        known = not math.isnan(one.value.value)
        line: dict[str, Value] = {"what": one.what, "value": one.value if known else "-"}
        line["mean of all runs"] = point(one.value.mean, one.value.seeds)
        line["p"] = _p(one)
        line |= {"learnt": one.learnt or "-", "verdict": one.verdict, "results": where}
        lines.append(line)
    shown = {
        "what": True,
        "value": True,
        "mean of all runs": any(not math.isnan(f.value.mean) for _, f in rows),
        "p": any(not math.isnan(f.p) for _, f in rows),
        "learnt": any(f.learnt for _, f in rows),
        "verdict": True,
        "results": len({where for where, _ in rows}) > 1,
    }
    styles = {"value": ".4g", "mean of all runs": ".4g"}
    columns = [name for name, there in shown.items() if there]
    return Sheet(title="", note="", columns=columns, rows=lines, styles=styles)


def _p(one: Finding) -> str:
    if math.isnan(one.p):
        return "-"
    text = "< 0.001" if one.corrected < 0.001 else f"{one.corrected:.3f}"
    return f"{text} (primary)" if one.primary else text


def in_short(found: Sequence[Finding]) -> str:
    """How many of the findings say what."""
    words = Counter(finding.verdict.partition(":")[0] for finding in found)
    return "; ".join(f"{n} of {len(found)} {word}" for word, n in words.items()) or "no runs yet"
