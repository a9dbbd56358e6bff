"""Colourfulness against its closed form, and the checks that every reward shares."""

import numpy as np
import pytest
import torch

from rewards.colourfulness import Colourfulness


def test_equals_the_published_formula() -> None:
    x = torch.rand(4, 3, 20, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    red, green, blue = (255 * x).numpy().transpose(1, 0, 2, 3)
    rg, yb = red - green, (red + green) / 2 - blue
    spread = np.hypot(rg.std((1, 2)), yb.std((1, 2)))
    shift = np.hypot(rg.mean((1, 2)), yb.mean((1, 2)))
    reward = Colourfulness("cpu")(x, ["a"] * 4)
    np.testing.assert_allclose(reward.numpy(), spread + 0.3 * shift, atol=1.4e-3)


def test_grey_scores_zero_with_a_finite_gradient() -> None:
    x = torch.full((2, 3, 8, 8), 0.4, requires_grad=True)
    reward = Colourfulness("cpu")(x, ["a"] * 2)
    reward.sum().backward()
    torch.testing.assert_close(reward.detach(), torch.zeros(2), atol=1e-3, rtol=0)
    assert x.grad is not None and x.grad.isfinite().all()


def test_gradient_agrees_with_finite_differences() -> None:
    x = torch.rand(1, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = (0.1 + 0.8 * x).requires_grad_()
    assert torch.autograd.gradcheck(lambda images: Colourfulness("cpu")(images, ["a"]), x)


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (torch.zeros(3, 8, 8), ["a"] * 3, "shape"),
        (torch.zeros(1, 1, 8, 8), ["a"], "shape"),
        (torch.zeros(0, 3, 8, 8), [], "empty"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["a"], "floating point"),
        (torch.zeros(2, 3, 8, 8), ["a"], "prompts"),
        (torch.full((1, 3, 8, 8), float("nan")), ["a"], "finite"),
        (torch.full((1, 3, 8, 8), float("inf")), ["a"], "finite"),
        (torch.full((1, 3, 8, 8), 1.01), ["a"], r"\[0, 1\]"),
        (torch.full((1, 3, 8, 8), -0.01), ["a"], r"\[0, 1\]"),
    ],
)
def test_bad_arguments_are_named(images: torch.Tensor, prompts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Colourfulness("cpu")(images, prompts)


def test_rounding_beyond_the_range_is_tolerated() -> None:
    Colourfulness("cpu")(torch.full((1, 3, 8, 8), 1.0005), ["a"])
