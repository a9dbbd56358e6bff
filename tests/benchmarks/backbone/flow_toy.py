"""A family of its own in few lines: a tiny flow-matching model, sampled as in Flow-GRPO."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.backbone.base import BaseBackbone
from benchmarks.backbone.gaussian import log_density, scored


@dataclass
class Flow:
    """Latents at sigma s are (1 - s) x0 + s noise; the output is their velocity, noise - x0."""

    sigmas: list[float]  # from 1 to 0, one more than there are sampling steps
    eta: float

    def __post_init__(self) -> None:
        self.timesteps = [1000 * s for s in self.sigmas[:-1]]

    def __len__(self) -> int:
        return len(self.timesteps)

    def x0(self, i: int, output: Tensor, latents: Tensor) -> Tensor:
        return latents - self.sigmas[i] * output

    def noise(self, i: int, output: Tensor, latents: Tensor) -> Tensor:
        return latents + (1 - self.sigmas[i]) * output

    def renoised(self, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        return (1 - self.sigmas[i]) * x0 + self.sigmas[i] * noise

    def denoised(self, i: int, latents: Tensor, noise: Tensor) -> Tensor:
        return (latents - self.sigmas[i] * noise) / (1 - self.sigmas[i])

    def _spread(self, i: int) -> float:  # Flow-GRPO's sigma_t; at s = 1 the next s stands in
        s = self.sigmas[i]
        return self.eta * math.sqrt(s / (1 - (s if s < 1 else self.sigmas[1])))

    def mean(self, i: int, output: Tensor, latents: Tensor) -> Tensor:
        s, dt, spread = self.sigmas[i], self.sigmas[i + 1] - self.sigmas[i], self._spread(i)
        drift = output * (1 + spread**2 * (1 - s) / (2 * s)) * dt
        return latents * (1 + spread**2 * dt / (2 * s)) + drift

    def std(self, i: int) -> float:
        return self._spread(i) * math.sqrt(self.sigmas[i] - self.sigmas[i + 1])

    scored = property(scored)

    def log_prob(self, i: int, value: Tensor, mean: Tensor) -> Tensor:
        return log_density(value, mean, self.std(i))


class Denoiser(nn.Module):
    """One hidden layer over the channels of each pixel, the prompt's numbers and the time."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_v = nn.Linear(3 + 5, 16), nn.Linear(16, 3)

    def forward(self, latents: Tensor, time: Tensor, text: Tensor) -> Tensor:
        given = torch.cat([text, time[:, None]], 1)[:, None, None].expand(-1, *latents.shape[2:], 5)
        hidden = self.to_q(torch.cat([latents.movedim(1, -1), given], -1)).tanh()
        return self.to_v(hidden).movedim(-1, 1)


class FlowToy(BaseBackbone):
    component, train_timesteps = "transformer", 1000

    def __init__(self, ledger: Any, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        torch.manual_seed(0)
        parts = {"denoiser": Denoiser(), "autoencoder": nn.ConvTranspose2d(3, 3, 2, 2)}
        super().__init__(ledger, latent_shape=(3, 4, 6), **parts, **options)

    def sampler(self, steps: int, eta: float = 0.0) -> Flow:
        return Flow([1 - i / steps for i in range(steps + 1)], eta)

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Any) -> tuple[Tensor, Tensor]:
        s = (torch.tensor(timesteps, device=noise.device) / 1000).view(-1, 1, 1, 1)
        return (1 - s) * latents + s * noise, noise - latents

    def conditions(self, prompts: Any) -> tuple[Tensor]:
        letters = [[float(p.count(c)) for c in "aeio"] for p in prompts]
        return (torch.tensor(letters, device=self.device),)

    def denoise(self, latents: Tensor, timesteps: Tensor, condition: Any) -> Tensor:
        return self.denoiser(latents, timesteps / 1000, *condition)

    def pixels(self, latents: Tensor) -> Tensor:
        return self.autoencoder(latents)
