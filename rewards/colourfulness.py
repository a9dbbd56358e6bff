"""Colourfulness, in closed form.

Hasler and Suesstrunk, "Measuring colourfulness in natural images" (SPIE 2003), measure M3: with
rg = R - G and yb = (R + G) / 2 - B on the scale [0, 255],

    M3 = sqrt(std(rg)^2 + std(yb)^2) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rewards import Reward, register_reward, torch
from rewards._check import at_least_single, check

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-3  # far below one level of 255; without it grey pictures have an infinite slope


@register_reward("colourfulness")
class Colourfulness(Reward):
    """How colourful a picture is: M3, which is 0 for grey.

    It is off the published formula by at most 1.3 EPSILON.
    """

    unit = "M3"
    reference = "Hasler and Suesstrunk 2003, measure M3"
    differentiable = True

    def __init__(self, device: Any) -> None:
        self.device = torch.device(device)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check(images, prompts)
        x = 255 * at_least_single(images.to(self.device))
        red, green, blue = x.flatten(2).unbind(1)
        opponents = torch.stack([red - green, (red + green) / 2 - blue], 1)
        spread = opponents.var(2, correction=0).sum(1)
        shift = opponents.mean(2).square().sum(1)
        return _sqrt(spread) + 0.3 * _sqrt(shift)


def _sqrt(x: Tensor) -> Tensor:
    """The square root with a finite slope at 0, where it is 0."""
    return (x + EPSILON**2).sqrt() - EPSILON
