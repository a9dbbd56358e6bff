"""Statistics against known answers, scipy and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import (
    Layout,
    between,
    estimate,
    holm,
    interquartile_mean,
    median_cost,
    performance_profile,
    probability_of_improvement,
    stratified,
    summarise,
    win_rate,
)


def test_interquartile_mean_resists_an_outlier_and_the_mean_stands_beside_it() -> None:
    values = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, -50.0]
    result = summarise(values)
    assert result.value == pytest.approx(np.mean([1.1, 1.2, 1.3, 1.4]))
    assert result.mean == pytest.approx(np.mean(values))
    assert result.low <= result.value <= result.high
    assert summarise(values) == result  # fixed stream
    assert summarise([value + 3 for value in values]).low == pytest.approx(result.low + 3)


def two_way(
    seeds: int, prompts: int, each: int, deviations: tuple[float, float, float], seed: int = 0
) -> Layout:
    """Runs, prompts and pictures with these deviations, added up."""
    random = np.random.default_rng(seed)
    of_runs, of_prompts, of_pictures = deviations
    names = tuple(f"prompt {i}" for i in range(prompts) for _ in range(each))
    changes = of_runs * random.standard_normal((seeds, 1))
    changes = changes + of_prompts * np.repeat(random.standard_normal(prompts), each)
    return Layout(changes + of_pictures * random.standard_normal(len(names)), names)


@pytest.mark.parametrize("deviations", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_the_error_is_that_of_runs_prompts_and_pictures(deviations: tuple[float, ...]) -> None:
    """Against the variance components that the layouts were made with."""
    runs, prompts, pictures = (float(d) for d in deviations)
    seeds, number, each = 40, 15, 2
    found = [
        estimate(two_way(seeds, number, each, (runs, prompts, pictures), seed)).error ** 2
        for seed in range(60)
    ]
    efficiency = 1.2  # an interquartile mean has the variance of a mean, and a fifth more
    expected = efficiency * runs**2 / seeds + prompts**2 / number + pictures**2 / (number * each)
    assert np.mean(found) == pytest.approx(expected, rel=0.15)


def test_prompts_that_are_all_there_are_leave_only_pictures_to_chance() -> None:
    layout = two_way(8, 20, 4, (0, 1, 0.2))
    assert estimate(layout).error == pytest.approx(1 / math.sqrt(20), rel=0.4)
    whole = estimate(Layout(layout.changes, layout.prompts, whole=True))
    assert whole.error == pytest.approx(0.2 / math.sqrt(80), rel=0.2)
    assert whole.freedom == pytest.approx(60)


def test_what_both_were_looked_at_with_cancels() -> None:
    """Paired noise: two methods on the same hard and easy pictures differ without doubt."""
    one = two_way(6, 15, 2, (0.1, 1, 1))
    other = Layout(one.changes - 0.5, one.prompts)
    apart = between(one, other)
    assert apart.value == pytest.approx(0.5)
    assert apart.low > 0.2 and estimate(one).error > 3 * apart.error
    strangers = tuple(f"other {prompt}" for prompt in one.prompts)
    assert between(one, Layout(other.changes, strangers)).low < 0


def test_few_placebos_are_enough_where_asked_for() -> None:
    one, few = two_way(6, 15, 2, (0.1, 0, 0)), two_way(3, 15, 2, (0.1, 0, 0))
    assert math.isnan(between(one, few).low) and not math.isnan(between(one, few, 3).low)


def test_holm_on_his_example() -> None:
    """Holm 1979: the smallest is multiplied by their number, the next by one less, and so on."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, 0.02]) == pytest.approx([0.02, 0.02])
    with_gaps = holm([0.01, float("nan"), 0.9])
    assert with_gaps[0] == pytest.approx(0.02) and math.isnan(with_gaps[1])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_p_is_below_5_percent_where_the_interval_leaves_the_value_out() -> None:
    result = summarise([1.0, 2.0, 3.0, 4.0, 5.0])
    assert result.p(result.low) == pytest.approx(0.05) and result.p(result.high + 1) < 0.05
    assert result.p(result.value) == 1 and math.isnan(summarise([1.0, 2.0]).p())
    assert summarise([1.0] * 5).p() == 0 and summarise([0.0] * 5).p() == 1


def test_a_median_with_runs_that_never_got_there() -> None:
    never = math.inf
    for costs, expected, open_ in (
        ([1.0, 2.0, never], 2.0, False),
        ([1.0, never, never], 9.0, True),
        ([1.0, 4.0, never, never], math.sqrt(4 * 9), True),
        ([1.0, 4.0, 9.0, never], 6.0, False),
        ([never] * 3, 9.0, True),
    ):
        value, is_open = median_cost(costs, [9.0])
        assert (float(value), bool(is_open)) == (pytest.approx(expected), open_)
    many, _ = median_cost([[1.0, 2.0, 3.0], [3.0, never, 1.0]], [9.0])
    assert many.tolist() == pytest.approx([2.0, 3.0])


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


def test_the_error_is_the_exact_bootstraps() -> None:
    """All 5**5 resamples of five values, enumerated, and the variance that they leave out."""
    values = np.array([0.0, 1.0, 2.0, 4.0, 8.0])
    draws = np.stack(np.meshgrid(*[values] * 5), -1).reshape(-1, 5)
    exact = stats.trim_mean(draws, 0.25, axis=1).std() * math.sqrt(5 / 4)
    result = summarise(values.tolist())
    assert result.error == pytest.approx(exact, rel=0.05) and result.freedom == pytest.approx(4)
    half = stats.t.ppf(0.975, 4) * result.error
    assert (result.low, result.high) == pytest.approx((result.value - half, result.value + half))


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
