"""The measures on features, against known answers and properties."""

import math

import pytest
import torch

from benchmarks.harness.diversity import across_prompts, drift, measures, vendi, within_prompts

AXES = torch.eye(4)


def test_vendi_counts_different_pictures():
    assert vendi(AXES) == pytest.approx(4)
    assert vendi(AXES[[0, 0, 0, 0]]) == pytest.approx(1, abs=1e-6)
    assert vendi(AXES[[0, 0, 1, 1]]) == pytest.approx(2)
    # Three of one kind and one of another: exp of the entropy of (3/4, 1/4).
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert vendi(AXES[[0, 0, 0, 1]]) == pytest.approx(math.exp(entropy))


def test_within_and_across_prompts():
    prompts = ["cat", "cat", "dog", "dog"]
    assert within_prompts(AXES, prompts) == pytest.approx(1)
    assert within_prompts(AXES[[0, 0, 1, 1]], prompts) == pytest.approx(0)
    assert across_prompts(AXES[[0, 0, 1, 1]], prompts) == pytest.approx(0)
    assert across_prompts(AXES[[0, 0, 0, 0]], prompts) == pytest.approx(1)
    assert within_prompts(torch.stack([AXES[0], -AXES[0]]), ["cat"] * 2) == pytest.approx(2)
    assert math.isnan(within_prompts(AXES, list("abcd")))
    assert math.isnan(across_prompts(AXES, ["cat"] * 4))


def test_order_and_scale_do_not_matter():
    features = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    prompts, order = ["cat", "cat", "dog", "dog", "fox", "fox"], [3, 0, 5, 1, 4, 2]
    first = measures(features, prompts, features.roll(1, 0))
    second = measures(7 * features[order], [prompts[i] for i in order], features.roll(1, 0)[order])
    assert second == pytest.approx(first)


def test_drift_pairs_pictures():
    assert drift(AXES, AXES) == pytest.approx(0)
    assert drift(AXES, AXES.roll(1, 0)) == pytest.approx(1)
    assert measures(AXES, ["cat"] * 4, None)["drift"] == 0
