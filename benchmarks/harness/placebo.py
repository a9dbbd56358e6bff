"""A reward without meaning, against which a gain shows that something was learnt.

The placebo of a reward R pays ``mean + s (R - mean)`` where the sign s is a coin toss per picture
and the mean is that of the base model's pictures. Values, their spread and the size of gradients
stay those of R, and so does the cost, but on average no direction is better than another. Whatever
R still gains in such a run, it gains by drifting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.api import RewardFunction, Scale

#: Brightness in units of 1 / FINENESS decides the toss: for one picture always the same, and not
#: another one by rounding.
FINENESS = 4096


def placebo(reward: RewardFunction, scale: Callable[[], Scale]) -> RewardFunction:
    """``reward`` with a coin toss for each picture; ``scale`` gives its mean."""

    def call(images: Tensor, prompts: Sequence[str]) -> Tensor:
        mean = scale().mean
        values = reward(images, prompts)
        return mean + tosses(images).to(values) * (values - mean)

    return call


def tosses(images: Tensor) -> Tensor:
    """(B,), -1 or 1: whether each picture's brightness is an odd or an even number of units."""
    level = (FINENESS * images.detach().float().mean((1, 2, 3))).round().long()
    return torch.where(level % 2 == 0, 1, -1)
