"""Statistics against known answers, scipy and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import (
    interquartile_mean,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    stratified,
    summarise,
    win_rate,
)


def test_interquartile_mean_resists_an_outlier_and_lies_in_its_interval() -> None:
    values = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, -50.0]
    result = summarise(values)
    assert result.value == pytest.approx(np.mean([1.1, 1.2, 1.3, 1.4]))
    assert result.low <= result.value <= result.high
    assert summarise(values) == result  # fixed stream
    shifted = summarise([value + 3 for value in values])
    assert shifted.low == pytest.approx(result.low + 3)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1).normal(size=(60, 20))
    hits = [(e := summarise(list(row))).low <= 0 <= e.high for row in draws]
    assert np.mean(hits) > 0.8


def test_a_diverged_seed_is_not_left_out() -> None:
    assert math.isnan(summarise([1.0, float("nan"), 2.0]).value)


def test_interquartile_mean_is_the_mean_of_the_middle_half() -> None:
    assert interquartile_mean(np.arange(1.0, 9.0)) == pytest.approx(4.5)
    assert interquartile_mean([0.0, 1.0, 2.0, 30.0]) == pytest.approx(1.5)
    values = np.random.default_rng(0).normal(size=40)
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25))


def test_the_bootstrap_resamples_within_tasks() -> None:
    """Seeds that agree leave no doubt, however far tasks are apart."""
    result = stratified([[1.0] * 5, [3.0] * 5])
    assert (result.low, result.value, result.high) == pytest.approx((2, 2, 2))
    pooled = summarise([1.0] * 5 + [3.0] * 5)
    assert pooled.high - pooled.low > 0.5


def test_the_interval_equals_the_exact_bootstrap() -> None:
    """All 5**5 resamples of five values, enumerated."""
    values = np.array([0.0, 1.0, 2.0, 4.0, 8.0])
    draws = np.stack(np.meshgrid(*[values] * 5), -1).reshape(-1, 5)
    exact = np.percentile(stats.trim_mean(draws, 0.25, axis=1), [2.5, 97.5])
    result = summarise(values.tolist())
    assert (result.low, result.high) == pytest.approx(tuple(exact), abs=0.35)


def test_probability_of_improvement_is_mann_whitneys_u() -> None:
    assert probability_of_improvement([[2.0, 3.0]], [[1.0, 1.5]]).value == 1
    assert probability_of_improvement([[1.0, 2.0]], [[1.0, 2.0]]).value == 0.5
    random = np.random.default_rng(0)
    x, y = random.normal(0.5, size=7).round(1), random.normal(size=9).round(1)
    u = stats.mannwhitneyu(x, y).statistic / (len(x) * len(y))
    result = probability_of_improvement([x.tolist()], [y.tolist()])
    assert result.value == pytest.approx(u) and result.low < u < result.high
    mirrored = probability_of_improvement([y.tolist()], [x.tolist()])
    assert mirrored.value == pytest.approx(1 - u)
    both = probability_of_improvement([x.tolist(), [1.0]], [y.tolist(), [0.0]])
    assert both.value == pytest.approx((u + 1) / 2) and math.isnan(both.low)


def test_paired_differences_count_every_prompt_once() -> None:
    result = paired_difference([[1.0, 1.0, 1.0], [3.0]])
    assert result.value == 2 and math.isnan(result.low)
    shifts = [[0.1 * i] for i in range(20)]
    many = paired_difference(shifts)
    assert many.low < many.value == pytest.approx(0.95) and many.high > many.value
    half = stats.norm.ppf(0.975) * np.std(shifts) / math.sqrt(20)  # of a mean of 20 prompts
    assert (many.low, many.high) == pytest.approx((0.95 - half, 0.95 + half), abs=0.03)


def test_performance_profile_counts_runs_that_never_got_there() -> None:
    profile = performance_profile([1.0, 2.0, math.inf, 2.0], [0.5, 1.0, 2.0, 99.0])
    assert profile.tolist() == [0, 0.25, 0.75, 0.75]


def test_win_rate_is_wilsons() -> None:
    """81 of 263: 0.2553 to 0.3662 (Newcombe 1998, Statistics in Medicine 17, table I)."""
    result = win_rate(81, 263)
    assert (result.low, result.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    other = stats.binomtest(3, 10).proportion_ci(method="wilson")
    assert win_rate(3, 10).low == pytest.approx(other.low)
    assert math.isnan(win_rate(0, 0).value)
