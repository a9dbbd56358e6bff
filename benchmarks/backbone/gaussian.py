"""The density of a sampling step whose next latents are drawn from a Gaussian."""

from __future__ import annotations

import math

from torch import Tensor


def log_density(value: Tensor, mean: Tensor, std: float) -> Tensor:
    """Log-density of ``value`` (B, C, h, w), averaged over dimensions as in DDPO: (B,)."""
    density = -((value - mean) ** 2) / (2 * std**2) - math.log(std * math.sqrt(2 * math.pi))
    return density.flatten(1).mean(1)
