"""The DDIM sampler as a Markov chain with Gaussian steps (Song et al. 2021, eq. 12 and 16).

With eta > 0 the step from x_t to x_{t-1} is a draw from N(mean, std^2), which policy-gradient
methods need; with eta = 0 it is the deterministic ``mean``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from benchmarks.api import UserError
from benchmarks.backbone.gaussian import log_density, scored


@dataclass(frozen=True)
class DDIM:
    """The sampling steps of one scheduler, first to last: a ``benchmarks.api.Sampler``.

    ``alpha_bar`` is the cumulative product at each timestep and ``alpha_bar_prev`` at the next,
    less noisy one; ``prediction`` says what the denoiser predicts: ``epsilon`` or ``v_prediction``.
    """

    timesteps: list[int]
    alpha_bar: list[float]
    alpha_bar_prev: list[float]
    prediction: str
    eta: float

    def __len__(self) -> int:
        return len(self.timesteps)

    def x0(self, i: int, output: Tensor, latents: Tensor) -> Tensor:
        """The clean latents that ``output`` predicts at sampling step ``i``."""
        a, b = self._scales(i)
        if self.prediction == "v_prediction":
            return a * latents - b * output
        return (latents - b * output) / a

    def noise(self, i: int, output: Tensor, latents: Tensor) -> Tensor:
        """The noise that ``output`` predicts at sampling step ``i``."""
        a, b = self._scales(i)
        return a * output + b * latents if self.prediction == "v_prediction" else output

    def renoised(self, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        """Clean latents brought to the noise of sampling step ``i`` (eq. 4)."""
        a, b = self._scales(i)
        return a * x0 + b * noise

    def denoised(self, i: int, latents: Tensor, noise: Tensor) -> Tensor:
        """The clean latents that, with this noise, ``renoised`` makes ``latents`` of."""
        a, b = self._scales(i)
        return (latents - b * noise) / a

    def std(self, i: int) -> float:
        """Standard deviation of sampling step ``i``: eta times eq. 16."""
        now, then = self.alpha_bar[i], self.alpha_bar_prev[i]
        return self.eta * math.sqrt((1 - then) / (1 - now) * (1 - now / then))

    def mean(self, i: int, output: Tensor, latents: Tensor) -> Tensor:
        """Mean of the next latents (eq. 12)."""
        then = self.alpha_bar_prev[i]
        rest = max(1 - then - self.std(i) ** 2, 0.0)  # rounding may take it below zero
        x0, noise = self.x0(i, output, latents), self.noise(i, output, latents)
        return math.sqrt(then) * x0 + math.sqrt(rest) * noise

    @cached_property
    def scored(self) -> tuple[int, ...]:
        """See ``benchmarks.backbone.gaussian.scored``."""
        return scored(self)

    def log_prob(self, i: int, value: Tensor, mean: Tensor) -> Tensor:
        """Log-density of ``value`` (B, C, h, w), averaged over dimensions: (B,)."""
        return log_density(value, mean, self.std(i))

    def _scales(self, i: int) -> tuple[float, float]:
        """What clean latents and noise are multiplied by in the latents of sampling step ``i``."""
        return math.sqrt(self.alpha_bar[i]), math.sqrt(1 - self.alpha_bar[i])


def ddim(scheduler: Any, steps: int, eta: float) -> DDIM:
    """The ``steps`` sampling steps of a diffusers DDIM scheduler.

    With eta > 0 the last step ends at timestep 0 instead of at clean latents, so that it still has
    a density (ddpo-pytorch ``ddim_with_logprob.py``). Raises UserError for too many steps.
    """
    if not 0 < steps <= scheduler.config.num_train_timesteps:
        most = scheduler.config.num_train_timesteps
        raise UserError(f"sampling_steps is {steps}; choose 1 to {most}")
    scheduler.set_timesteps(steps)
    timesteps = [int(t) for t in scheduler.timesteps]
    table = scheduler.alphas_cumprod.double()
    stride = scheduler.config.num_train_timesteps // steps
    end = float(table[0] if eta > 0 else scheduler.final_alpha_cumprod)
    previous = [t - stride for t in timesteps]
    return DDIM(
        timesteps=timesteps,
        alpha_bar=[float(table[t]) for t in timesteps],
        alpha_bar_prev=[float(table[t]) if t >= 0 else end for t in previous],
        prediction=scheduler.config.prediction_type,
        eta=eta,
    )
