"""A rising training reward has a large t, noise has not."""

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.trend import line, rows, together


def test_the_slope_and_its_t_are_those_of_least_squares():
    steps = np.arange(30)
    noise = np.random.default_rng(0).normal(0, 0.5, 30)
    found = line(list(2.0 + 0.1 * steps + noise))
    design = np.stack([np.ones(30), steps], 1)
    rewards = 2.0 + 0.1 * steps + noise
    best, residual, *_ = np.linalg.lstsq(design, rewards, rcond=None)
    variance = residual[0] / 28 * np.linalg.inv(design.T @ design)[1, 1]
    assert (found.slope, found.error) == (pytest.approx(best[1]), pytest.approx(variance**0.5))


def test_two_runs_of_equal_lines_have_a_t_that_is_larger_by_the_root_of_two():
    noise = np.random.default_rng(1).normal(0, 0.5, 20)
    one = line(list(0.2 * np.arange(20) + noise))
    assert together([one, one])[1] == pytest.approx(2**0.5 * one.slope / one.error)


def test_reward_and_placebo_are_rows_of_their_own(tmp_path: Path):
    for name, slope, placebo in (("a", 1.0, False), ("b", 0.0, True)):
        (tmp_path / name).mkdir()
        info = {"method": "ddpo", "reward": "jpeg", "seed": 0, "placebo": placebo}
        (tmp_path / name / "cell.json").write_text(json.dumps(info))
        noise = np.random.default_rng(2).normal(0, 0.5, 12)
        steps = [{"step": i, "reward": slope * i + noise[i]} for i in range(12)]
        (tmp_path / name / "steps.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
    _, _, placebo, reward = rows(tmp_path)
    assert "| placebo | 1 | 12 |" in placebo and "| reward | 1 | 12 |" in reward
    assert float(reward.split("|")[7]) > 10 > abs(float(placebo.split("|")[7]))
