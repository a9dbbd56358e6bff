"""The density of a sampling step whose next latents are drawn from a Gaussian."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.api import Sampler

#: A sampling step is not scored if it is so many times as sensitive as any other.
OUTLIER = 4.0


def log_density(value: Tensor, mean: Tensor, std: float) -> Tensor:
    """Log-density of ``value`` (B, C, h, w), averaged over dimensions as in DDPO: (B,)."""
    density = -((value - mean) ** 2) / (2 * std**2) - math.log(std * math.sqrt(2 * math.pi))
    return density.flatten(1).mean(1)


def scored(sampler: Sampler) -> tuple[int, ...]:
    """The sampling steps whose log-densities a policy gradient may add up.

    The gradient of step i's log-density is proportional to its ``sensitivity``, whatever the
    reward, so a step that is nearly deterministic drowns all others in its noise. Such steps are
    left out: those ``OUTLIER`` times as sensitive as any step that stays. Stable Diffusion's
    schedule ends at a small timestep, and all of its 50 steps stay. With trailing spacing and few
    steps the last one goes; of 10 steps with zero terminal SNR it had 98 % of the sum of squares.
    """
    found = {i: sensitivity(sampler, i) for i in range(len(sampler)) if sampler.std(i) > 0}
    while len(found) > 1:
        *_, second, worst = sorted(found, key=lambda i: found[i])
        if found[worst] < OUTLIER * found[second]:
            break
        del found[worst]
    return tuple(sorted(found))


def shares(sampler: Sampler, steps: Sequence[int]) -> list[float]:
    """How much of the squared gradient of ``steps``' log-densities each of them holds."""
    squares = [sensitivity(sampler, i) ** 2 for i in steps]
    return [square / sum(squares) for square in squares]


def sensitivity(sampler: Sampler, i: int) -> float:
    """By how many deviations of sampling step ``i`` its mean moves with the denoiser's output."""
    zero, one = torch.zeros(1), torch.ones(1)
    moved = sampler.mean(i, one, zero) - sampler.mean(i, zero, zero)
    return abs(float(moved)) / sampler.std(i)
