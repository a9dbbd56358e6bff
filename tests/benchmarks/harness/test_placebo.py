"""The placebo has the reward's spread and the size of its gradient, and no direction."""

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.api import Scale
from benchmarks.harness.placebo import placebo, tosses


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return 3 * images.mean((1, 2, 3))


def scale() -> Scale:
    return Scale(mean=1.5, deviation=1.0)


def pictures(count: int = 400) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_values_are_mirrored_at_the_base_models_mean_half_of_the_time():
    images = pictures()
    real, paid = brightness(images, []), placebo(brightness, scale)(images, [])
    same = torch.isclose(paid, real)
    torch.testing.assert_close(paid[~same], 3.0 - real[~same])
    assert 150 < int(same.sum()) < 250
    together = torch.stack([real, paid])[:, (real - 1.5).abs() > 1e-3]
    assert abs(float(torch.corrcoef(together)[0, 1])) < 0.15


def test_gradients_have_the_rewards_size_and_a_random_sign():
    images = pictures().requires_grad_()
    placebo(brightness, scale)(images, []).sum().backward()
    each = images.grad[:, 0, 0, 0]
    torch.testing.assert_close(each.abs(), torch.full_like(each, 3 / images[0].numel()))
    assert abs(float(each.sign().mean())) < 0.15


def test_the_toss_belongs_to_the_picture_and_not_to_its_place_or_rounding():
    images = pictures(64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(tosses(images[order]), tosses(images)[order])
    assert torch.equal(tosses(images * (1 + 1e-7)), tosses(images))
