"""The DDIM sampler as a Markov chain with Gaussian steps (Song et al. 2021, eq. 12 and 16).

With eta > 0 the step from x_t to x_{t-1} is a draw from N(mean, std^2), which policy-gradient
methods need; with eta = 0 it is the deterministic ``mean``. Whatever the scheduler of a folder, its
timesteps and noise levels are sampled by DDIM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from torch import Tensor

from benchmarks.api import UserError
from benchmarks.backbone.gaussian import log_density, scored
from benchmarks.backbone.pipeline import supported

#: What a denoiser may predict: the noise, the velocity, or x0.
PREDICTIONS = ("epsilon", "v_prediction", "sample")
#: Schedulers with DDIM's noise levels. (EDM's is among diffusers' list, but has others.)
SCHEDULERS = [kind.name for kind in KarrasDiffusionSchedulers if not kind.name.startswith("EDM")]


@dataclass(frozen=True)
class DDIM:
    """The sampling steps of one scheduler, first to last: a ``benchmarks.api.Sampler``.

    ``alpha_bar`` is the cumulative product at each timestep and ``alpha_bar_prev`` at the next,
    less noisy one; ``prediction`` says what the denoiser predicts, see ``PREDICTIONS``.
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
        match self.prediction:
            case "v_prediction":
                return a * latents - b * output
            case "sample":
                return output
            case _:
                return (latents - b * output) / a

    def noise(self, i: int, output: Tensor, latents: Tensor) -> Tensor:
        """The noise that ``output`` predicts at sampling step ``i``."""
        a, b = self._scales(i)
        match self.prediction:
            case "v_prediction":
                return a * output + b * latents
            case "sample":
                return (latents - a * output) / b
            case _:
                return output

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


def as_ddim(scheduler: Any) -> DDIMScheduler:
    """DDIM's scheduler with the noise levels and timesteps of a pipeline's scheduler.

    Raises UserError for a scheduler of another kind, and for options that DDIM has not or that
    suit pictures and not latents.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name not in SCHEDULERS:
        raise UserError(
            f"the scheduler is a {name}; a U-Net is sampled by DDIM, which supports the "
            f"configurations of {', '.join(SCHEDULERS)}"
        )
    supported(
        "scheduler/scheduler_config.json",
        config,
        prediction_type=PREDICTIONS,
        timestep_spacing=("leading", "trailing", "linspace", None),
        beta_schedule=("linear", "scaled_linear", "squaredcos_cap_v2"),
        thresholding=(False, None),
        clip_sample=(False, None),
        use_flow_sigmas=(False, None),
    )
    # Schedulers that know no clipping do not clip; DDIM's default is for pixels.
    found: DDIMScheduler = DDIMScheduler.from_config(config, clip_sample=False)
    return found


def ddim(scheduler: DDIMScheduler, steps: int, eta: float) -> DDIM:
    """The ``steps`` sampling steps of a diffusers DDIM scheduler.

    With eta > 0 the last step ends at timestep 0 instead of at clean latents, so that it still has
    a density (ddpo-pytorch ``ddim_with_logprob.py``). Raises UserError for a number of steps that
    leads to timesteps which are not there, or not to be sampled at.
    """
    config = scheduler.config
    trained = config.num_train_timesteps
    if not 0 < steps <= trained:
        raise UserError(f"sampling_steps is {steps}; choose 1 to {trained}")
    scheduler.set_timesteps(steps)
    timesteps = [int(t) for t in scheduler.timesteps]
    if len(timesteps) != steps or timesteps[0] >= trained or timesteps[-1] < 0:
        raise UserError(
            f"sampling_steps is {steps}: with timestep_spacing {config.timestep_spacing} and "
            f"steps_offset {config.steps_offset} they are {len(timesteps)}, from timestep "
            f"{timesteps[0]} to {timesteps[-1]}, but the model was trained on {trained - 1} to 0; "
            "choose another number"
        )
    table = scheduler.alphas_cumprod.double()
    if config.prediction_type == "epsilon" and table[timesteps[0]] == 0:
        raise UserError(
            "scheduler/scheduler_config.json: with prediction_type epsilon nothing can be drawn "
            "from pure noise, where rescale_betas_zero_snr and this timestep_spacing begin"
        )
    stride = trained // steps
    end = float(table[0] if eta > 0 else scheduler.final_alpha_cumprod)
    previous = [t - stride for t in timesteps]
    return DDIM(
        timesteps=timesteps,
        alpha_bar=[float(table[t]) for t in timesteps],
        alpha_bar_prev=[float(table[t]) if t >= 0 else end for t in previous],
        prediction=config.prediction_type,
        eta=eta,
    )
