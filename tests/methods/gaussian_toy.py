"""A model of one number per picture whose distribution is known, with a line to train per step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from benchmarks.backbone.base import BaseBackbone
from benchmarks.backbone.ddim import DDIM, ddim
from benchmarks.compute.ledger import Ledger

MEAN, SPREAD, STEPS = 0.1, 0.5, 10


class Control(nn.Module):
    """The noise in latents of data N(MEAN, SPREAD^2), and a trained line over it for each step."""

    def __init__(self, alpha_bar: Tensor, stride: int) -> None:
        super().__init__()
        self.alpha_bar, self.stride, self.trained = alpha_bar, stride, True
        self.slope, self.shift = (nn.Parameter(torch.zeros(STEPS).double()) for _ in range(2))

    def forward(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        a, b = self.alpha_bar[timesteps].sqrt(), (1 - self.alpha_bar[timesteps]).sqrt()
        a, b = a.view(-1, 1, 1, 1), b.view(-1, 1, 1, 1)
        centred = latents - a * MEAN
        noise = b * centred / (a**2 * SPREAD**2 + b**2)
        if not self.trained:
            return noise
        k = (timesteps // self.stride)[:, None, None, None]
        return noise + self.slope[k] * centred + self.shift[k]


class Gaussian(BaseBackbone):
    """One number per picture, whose distribution is known."""

    component, train_timesteps = "denoiser", 1000

    def __init__(self) -> None:
        self.scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            timestep_spacing="trailing",
        )
        control = Control(self.scheduler.alphas_cumprod.double(), 1000 // STEPS)
        parts: dict[str, Any] = {"denoiser": control, "autoencoder": nn.Identity()}
        super().__init__(Ledger(), latent_shape=(1, 1, 1), rank=0, **parts)
        control.double()

    def sampler(self, steps: int, eta: float = 0.0) -> DDIM:
        return ddim(self.scheduler, steps, eta)

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Any) -> Any:
        raise NotImplementedError

    def conditions(self, prompts: Any) -> tuple[Tensor]:
        return (torch.zeros(len(prompts), 1),)

    def denoise(self, latents: Tensor, timesteps: Tensor, condition: Any) -> Tensor:
        return self.denoiser(latents.double(), timesteps)

    def pixels(self, latents: Tensor) -> Tensor:
        return self.autoencoder(latents / 4)

    @contextmanager
    def adapting(self, wanted: bool) -> Iterator[None]:
        before, self.denoiser.trained = self.denoiser.trained, wanted
        yield
        self.denoiser.trained = before


def distribution(backbone: Gaussian, sampler: DDIM) -> tuple[float, float]:
    """Mean and variance of the sampled x_0: every step is a line and a Gaussian around it."""
    mean, variance = 0.0, 1.0
    for k, timestep in enumerate(sampler.timesteps):
        ends = torch.tensor([mean, mean + 1]).double().view(2, 1, 1, 1)
        with torch.no_grad():
            output = backbone.predict(ends, timestep, backbone.encode(["", ""]), 1.0)
        mean, after = sampler.mean(k, output, ends).flatten().tolist()
        variance = (after - mean) ** 2 * variance + sampler.std(k) ** 2
    return mean, variance
