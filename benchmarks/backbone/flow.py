"""Flow matching: straight paths from noise to pictures; Euler's steps, or Flow-GRPO's with noise.

At noise level s, from 1 to 0, latents are (1 - s) x0 + s noise, and the denoiser predicts their
velocity v = noise - x0. So x0 = x - s v and noise = x + (1 - s) v.

With eta 0 a step goes straight to the next level s' (``FlowMatchEulerDiscreteScheduler``):
x' = x + v ds, ds = s' - s < 0. Otherwise it is an Euler-Maruyama step of the stochastic equation
with the same marginals and the diffusion g = eta sqrt(s / (1 - s)) (Flow-GRPO, Liu et al. 2025,
eq. 9; ``sd3_sde_with_logprob.py``),

    x' = x + (v + g^2 / (2 s) (x + (1 - s) v)) ds + g sqrt(-ds) z,

whose drift is v minus half of g^2 times the score -noise / s. At s = 1 the next level stands in the
denominator of g, as it does there. Latents are float32, levels float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.api import UserError
from benchmarks.backbone.gaussian import log_density, scored
from benchmarks.backbone.pipeline import PipelineBackbone, supported


@dataclass(frozen=True)
class Flow:
    """The sampling steps of one schedule, first to last: a ``benchmarks.api.Sampler``.

    ``levels`` are the noise levels from 1 to 0, one more than there are sampling steps.
    """

    timesteps: list[float]
    levels: list[float]
    eta: float

    def __len__(self) -> int:
        return len(self.timesteps)

    def x0(self, i: int, output: Tensor, latents: Tensor) -> Tensor:
        """The clean latents that ``output`` predicts at sampling step ``i``."""
        return latents - self.levels[i] * output

    def noise(self, i: int, output: Tensor, latents: Tensor) -> Tensor:
        """The noise that ``output`` predicts at sampling step ``i``."""
        return latents + (1 - self.levels[i]) * output

    def renoised(self, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        """Clean latents brought to the noise of sampling step ``i``."""
        return (1 - self.levels[i]) * x0 + self.levels[i] * noise

    def denoised(self, i: int, latents: Tensor, noise: Tensor) -> Tensor:
        """The clean latents that, with this noise, ``renoised`` makes ``latents`` of."""
        return (latents - self.levels[i] * noise) / (1 - self.levels[i])

    def mean(self, i: int, output: Tensor, latents: Tensor) -> Tensor:
        """Mean of the next latents."""
        s, pull = self.levels[i], self._diffusion(i) ** 2 / (2 * self.levels[i])
        step = self.levels[i + 1] - s
        return (1 + pull * step) * latents + (1 + pull * (1 - s)) * step * output

    def std(self, i: int) -> float:
        """Standard deviation of the next latents."""
        return self._diffusion(i) * math.sqrt(self.levels[i] - self.levels[i + 1])

    def _diffusion(self, i: int) -> float:
        s = self.levels[i]
        return self.eta * math.sqrt(s / (1 - (s if s < 1 else self.levels[1])))

    @cached_property
    def scored(self) -> tuple[int, ...]:
        """See ``benchmarks.backbone.gaussian.scored``."""
        return scored(self)

    def log_prob(self, i: int, value: Tensor, mean: Tensor) -> Tensor:
        """Log-density of ``value`` (B, C, h, w), averaged over dimensions: (B,)."""
        return log_density(value, mean, self.std(i))


class FlowBackbone(PipelineBackbone):
    """A pipeline of flow matching."""

    #: Of one picture's latents this many pixels in height and width are a token.
    patch = 2

    @property
    def tokens(self) -> int:
        """Of one picture; the more, the longer a shifted schedule stays at high noise."""
        _, height, width = self.latent_shape
        return (height // self.patch) * (width // self.patch)

    def check(self) -> None:
        """The scheduler is Euler's, and adds no noise of its own."""
        self.scheduler = self.pipeline.scheduler
        if (name := type(self.scheduler).__name__) != "FlowMatchEulerDiscreteScheduler":
            raise UserError(
                f"the scheduler is a {name}; supported: FlowMatchEulerDiscreteScheduler"
            )
        supported(
            "scheduler/scheduler_config.json",
            self.scheduler.config,
            stochastic_sampling=(False, None),
            invert_sigmas=(False, None),
        )

    @property
    def train_timesteps(self) -> int:
        """How many timesteps the scheduler was trained with."""
        return int(self.scheduler.config.num_train_timesteps)

    def spacing(self, steps: int) -> dict[str, Any]:
        """What the pipeline asks the scheduler's ``set_timesteps`` for, its shift aside."""
        return {"num_inference_steps": steps}

    def sampler(self, steps: int, eta: float = 0.0) -> Flow:
        """Sampling steps at the pipeline's noise levels.

        Raises UserError for a number of steps for which the scheduler has no such levels.
        """
        if not 0 < steps <= self.train_timesteps:
            raise UserError(f"sampling_steps is {steps}; choose 1 to {self.train_timesteps}")
        wanted, config = self.spacing(steps), self.scheduler.config
        if config.use_dynamic_shifting:
            slope = config.max_shift - config.base_shift
            slope /= config.max_image_seq_len - config.base_image_seq_len
            wanted["mu"] = (
                self.tokens * slope + config.base_shift - slope * config.base_image_seq_len
            )
        self.scheduler.set_timesteps(**wanted)
        levels = self.scheduler.sigmas.double().tolist()
        if not 1 >= levels[0] > 0 or any(now <= then for now, then in pairwise(levels)):
            raise UserError(
                f"scheduler/scheduler_config.json: {steps} sampling steps have the noise levels "
                f"{levels[0]:.3g} to {levels[-1]:.3g}, which must fall from 1 or less"
            )
        return Flow(self.scheduler.timesteps.tolist(), levels, eta)

    def noised(
        self, latents: Tensor, noise: Tensor, timesteps: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Clean latents brought to ``timesteps``, and the velocity to predict there."""
        level = torch.tensor(timesteps, device=latents.device) / self.train_timesteps
        level = level.view(-1, 1, 1, 1)
        return (1 - level) * latents + level * noise, noise - latents

    def unscaled(self, latents: Tensor) -> Tensor:
        """Latents as the autoencoder takes them."""
        return super().unscaled(latents) + (self.vae.config.shift_factor or 0.0)
