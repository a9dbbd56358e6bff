"""How far the rewards of the guard may fall: the same rule in runs, searches and reports.

The guard are rewards that no run optimises and that say whether a picture still shows what was
asked for. A checkpoint is kept while the mean of each, on the pictures of one evaluation, is at
most ``FALL`` deviations below the base model's, from the same prompts and noise. The unit is the
deviation within a prompt: how much one picture of the base model differs from the next.

A cell with a guard writes into every line of ``evals.jsonl``

    "floors": {"judge": -0.31, "background": 0.92}, "kept": true

and whoever judges it (verdicts, the search) reads ``kept`` and computes nothing anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Deviations within a prompt.
FALL = 1.0

Pictures = Sequence[Mapping[str, Any]]  # per_image of an evaluation: prompt, rewards


def deviation(pictures: Pictures, reward: str) -> float:
    """Standard deviation of a reward between pictures of one prompt, pooled over the prompts.

    NaN if no prompt has two pictures.
    """
    by_prompt: dict[str, list[float]] = {}
    for picture in pictures:
        value = float(picture["rewards"][reward])
        by_prompt.setdefault(picture["prompt"], []).extend([value] if math.isfinite(value) else [])
    squares, freedom = 0.0, 0
    for values in by_prompt.values():
        mean = math.fsum(values) / (len(values) or 1)
        squares += math.fsum((value - mean) ** 2 for value in values)
        freedom += max(len(values) - 1, 0)
    return math.sqrt(squares / freedom) if freedom else math.nan


def floors(base: Pictures, guard: Iterable[str]) -> dict[str, float]:
    """The least mean of each reward of the guard; ``base`` are the base model's pictures.

    Raises ValueError if no prompt has two pictures.
    """
    found: dict[str, float] = {}
    for name in guard:
        values = [float(picture["rewards"][name]) for picture in base]
        finite = [value for value in values if math.isfinite(value)]
        mean = math.fsum(finite) / (len(finite) or 1)
        found[name] = mean - FALL * deviation(base, name)
        if math.isnan(found[name]):
            raise ValueError(f"the guard {name!r} needs two pictures of one prompt")
    return found


def kept(rewards: Mapping[str, float], least: Mapping[str, float]) -> bool:
    """Whether no reward of the guard is below its floor; a NaN is."""
    return all(rewards[name] >= floor for name, floor in least.items())
