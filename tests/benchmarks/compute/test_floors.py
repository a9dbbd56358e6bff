"""The guard's rule against known answers, and against the report's unit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from analysis import targets
from benchmarks.compute.floors import FALL, deviation, floors, kept


def pictures(*by_prompt: list[float]) -> list[dict[str, Any]]:
    return [
        {"prompt": f"prompt {i}", "rewards": {"judge": value}}
        for i, values in enumerate(by_prompt)
        for value in values
    ]


def test_the_deviation_is_that_within_a_prompt() -> None:
    """Prompts that are far apart do not count; a prompt with one picture says nothing."""
    base = pictures([1.0, 3.0], [10.0, 12.0], [99.0])
    assert deviation(base, "judge") == pytest.approx(math.sqrt(2))
    random = np.random.default_rng(0)
    uneven = pictures(*(random.normal(i, 1, 2 + i).tolist() for i in range(5)))
    assert deviation(uneven, "judge") == pytest.approx(targets.deviation(uneven, "judge"))


def test_a_checkpoint_is_kept_until_a_reward_of_the_guard_falls_below_its_floor() -> None:
    base = pictures([1.0, 3.0], [10.0, 12.0])
    least = floors(base, ["judge"])
    assert least == {"judge": pytest.approx(6.5 - FALL * math.sqrt(2))}
    assert kept({"judge": 6.5}, least) and kept({"judge": least["judge"]}, least)
    assert not kept({"judge": least["judge"] - 1e-6}, least)
    assert not kept({"judge": math.nan}, least) and kept({"other": 0.0}, {})


def test_one_picture_per_prompt_is_no_guard() -> None:
    with pytest.raises(ValueError, match="two pictures"):
        floors(pictures([1.0], [2.0]), ["judge"])
