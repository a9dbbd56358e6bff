"""The ideal loop: the passes of denoiser and decoder that the mathematics needs, nothing else.

No prompts, no sampler, no reward, no optimizer: modules are called on fixed inputs, and gradients
are fixed. The modules are ours, in the layout that is fastest here, with their LoRA matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.backbone.base import BaseBackbone
from benchmarks.backbone.kernels import one_trajectory


class Ideal:
    """Bare passes for ``batch`` pictures, with guidance in one batch of twice as many."""

    def __init__(self, backbone: BaseBackbone, batch: int, steps: int) -> None:
        self.backbone, self.steps = backbone, steps
        self.condition = backbone.encode([""] * (2 * batch))
        self.latents = torch.randn(2 * batch, *backbone.latent_shape, device=backbone.device)
        self.timesteps = torch.full((2 * batch,), 500, device=backbone.device)

    def alignprop(self, k: int, store: bool) -> None:
        """Backpropagation through the last ``k`` sampling steps, stored or recomputed."""
        firsts = [i == 0 for i in range(k)]  # through the first of them only weights get gradient
        with torch.no_grad(), one_trajectory():
            for _ in range(self.steps - (k if store else 0)):
                self._denoise(True)
        outputs = [self._denoise(first) for first in firsts] if store else []
        self._back(self._decode(True))
        for first in reversed(firsts):
            self._back(outputs.pop() if store else self._denoise(first))
        self._clear()

    def ddpo(self) -> None:
        """One update for one sampling round: the forward passes of scored steps are kept."""
        scored = len(self.backbone.sampler(self.steps, 1.0).scored)
        outputs = [self._denoise(True) for _ in range(scored)]
        with torch.no_grad():
            for _ in range(self.steps - scored):
                self._denoise(True)
            self._decode(False)
        while outputs:
            self._back(outputs.pop())
        self._clear()

    def _denoise(self, first: bool) -> Tensor:
        latents = self.latents.detach().requires_grad_(not first)
        return self.backbone.bare(latents, self.timesteps, self.condition)

    def _decode(self, gradient: bool) -> Tensor:
        latents = self.latents.chunk(2)[0].detach().requires_grad_(gradient)
        return self.backbone.pixels(latents)

    def _back(self, output: Tensor) -> None:
        output.backward(torch.ones_like(output))

    def _clear(self) -> None:
        for parameter in self.backbone.parameters():
            parameter.grad = None
