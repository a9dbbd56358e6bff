"""What a source claims, measured on our runs.

A claim of a suite's TOML file has ``paper`` (its words), ``published`` (quantities of
``results/published.toml``), ``measure`` (a function below), what that needs (``arms``, ``split``,
``of``, ...) and ``why``, if we differ. A measure gives one finding per reward; it is made so that
the claim says: above 0, or for ``speedup`` above ``times``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis import headline, published
from analysis.collect import Comparison, Evaluated
from analysis.records import BUDGETS, SPLITS
from analysis.sheets import Sheet, Value, point
from analysis.soups import values
from analysis.statistics import Estimate, last_rows, summarise
from analysis.targets import base_rows

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


@dataclass(frozen=True)
class Finding:
    """A number and what it says about the claim."""

    what: str
    value: Estimate
    verdict: str


def findings(claim: Claim, data: Data) -> list[Finding]:
    """What we see; empty without data."""
    found = MEASURES[claim["measure"]](claim, data)
    return [finding for finding in found if not math.isnan(finding.value.value)]


def verdict(value: Estimate, above: float = 0.0) -> str:
    """Whether the value, or its interval where there is one, is above."""
    low, high = (value.value,) * 2 if math.isnan(value.low) else (value.low, value.high)
    word = "holds" if low > above else "fails" if high < above else "undecided"
    return f"{word}, without an interval" if math.isnan(value.low) else word


def difference(claim: Claim, data: Data) -> Iterator[Finding]:
    """How much more the first arm ends with than the second, seed by seed."""
    first, second = claim["arms"]
    for comparison in data.comparisons:
        column = claim.get("of", comparison.reward)
        one, other = (_ends(comparison, label, claim["split"], column) for label in (first, second))
        value = summarise([one[seed] - other[seed] for seed in one.keys() & other.keys()])
        what = f"{column}{_on(comparison, column)}, {SPLITS[claim['split']]}: {first} - {second}"
        yield Finding(what, value, verdict(value))


def gain(claim: Claim, data: Data) -> Iterator[Finding]:
    """How much more an arm ends with than the base model."""
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
    """How many times less the first arm needs for the second's final reward."""
    fast, slow = claim["arms"]
    for comparison in data.comparisons:
        for kind in headline.KINDS:
            value = headline.speedup(comparison, fast, slow, kind, claim["split"])
            rose = math.isfinite(value.value)
            said = (
                verdict(value, claim.get("times", 1)) if rose else f"undecided: {slow} did not rise"
            )
            yield Finding(f"{comparison.reward}: {BUDGETS[kind][2]}, times less", value, said)


def soup(claim: Claim, data: Data) -> Iterator[Finding]:
    """How much more the mix with this coefficient has of either reward than the base model."""
    sweeps = [e for e in data.evaluated if e.info["kind"] == "sweep"]
    for reward in data.rewards:
        for split, words in SPLITS.items():
            gains = []
            for rows in (e.rows for e in sweeps if reward in e.rows[0]["rewards"]):
                chosen = [r for r in rows if r["split"] == split]
                mixed = [r for r in chosen[1:] if r["coefficients"][-1] == claim["at"]]
                gains += [values(r)[reward] - values(chosen[0])[reward] for r in mixed]
            value = summarise(gains)
            yield Finding(f"{reward}, {words}: soup - base model", value, verdict(value))


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
        yield Finding(f"GB, computed: {claim['rung']}", point(ours), said)


MEASURES: dict[str, Callable[[Claim, Data], Iterator[Finding]]] = {
    "difference": difference,
    "gain": gain,
    "parts_of_mixture": parts_of_mixture,
    "speedup": speedup,
    "soup": soup,
    "late": late,
    "early": early,
    "memory": memory,
}


def _ends(comparison: Comparison, label: str, split: str, column: str) -> dict[int, float]:
    last = last_rows(comparison.evals)
    rows = last[(last["label"] == label) & (last["split"] == split)]
    return {int(k): float(v) for k, v in rows.groupby("seed")[column].mean().items()}


def _gain(comparison: Comparison, label: str, split: str, column: str) -> Finding:
    base = float(base_rows(comparison, split)[column].mean())
    value = summarise([v - base for v in _ends(comparison, label, split, column).values()])
    what = f"{column}{_on(comparison, column)}, {SPLITS[split]}: {label} - base model"
    return Finding(what, value, verdict(value))


def _on(comparison: Comparison, column: str) -> str:
    return "" if column == comparison.reward else f" (trained on {comparison.reward})"


def _halves(reward: str, data: Data, more: str, less: str) -> Iterator[Finding]:
    for split, words in SPLITS.items():
        found = []
        for one in (e for e in data.evaluated if e.info["kind"] == "parts"):
            if one.info["checkpoints"][0]["reward"] == reward:
                rows = {r["name"]: values(r)[reward] for r in one.rows if r["split"] == split}
                found.append(rows[f"{more} 50%"] - rows[f"{less} 50%"])
        value = summarise(found)
        what = f"{reward}, {words}: {more} half - {less} half"
        yield Finding(what, value, verdict(value))


def sheet(rows: Sequence[tuple[str, Finding]]) -> Sheet:
    """Findings, each with the directory of results it is from if there are several."""
    lines: list[Mapping[str, Value]] = [
        {"what": finding.what, "value": finding.value, "verdict": finding.verdict, "results": where}
        for where, finding in rows
    ]
    columns = ["what", "value", "verdict"]
    columns += ["results"] * (len({where for where, _ in rows}) > 1)
    return Sheet(title="", note="", columns=columns, rows=lines, styles={"value": ".4g"})


def in_short(found: Sequence[Finding]) -> str:
    """How many of the findings say what."""
    words = Counter(finding.verdict.partition(":")[0] for finding in found)
    return "; ".join(f"{n} of {len(found)} {word}" for word, n in words.items()) or "no runs yet"
