"""The tiny model in double precision, and its sampling steps written out anew from the papers.

Nothing here uses the project's samplers: coefficients come from diffusers' table of alpha-bars, the
base model is a pipeline without LoRA matrices, and log-densities are torch's.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from conftest import Greyness, tiny_pipeline
from torch import Tensor

from benchmarks.api import Context, Scale
from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import Ledger
from benchmarks.streams import Streams

#: 3 sampling steps of 1000 timesteps, as Stable Diffusion spaces them.
STEPS, TIMESTEPS = 3, (667, 334, 1)
GUIDANCE = 2.0
SMALL = {
    "samples_per_round": 4,
    "samples_per_prompt": 2,
    "updates_per_round": 1,
    "micro_batch": 2,
    "sampling_steps": STEPS,
    "guidance": GUIDANCE,
}


class DoubleStreams(Streams):
    def normal(self, *arguments: Any) -> Tensor:
        return super().normal(*arguments).double()


class World:
    """A model with LoRA matrices that are all non-zero, its base model, and a context."""

    def __init__(self) -> None:
        # Not "all": the policy moves between sampling and update, so no graphs may be kept.
        self.backbone = StableDiffusion(tiny_pipeline(), Ledger(), keep="latents")
        for module in self.backbone.modules():
            module.double()
        self.base = tiny_pipeline().unet.double()
        generator = torch.Generator().manual_seed(1)
        for parameter in self.backbone.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator).double()
        self.context = Context(
            backbone=self.backbone,
            reward=self.backbone.ledger.counted(Greyness()),
            prompts=lambda step, count: ["cat", "dog", "fox"][:count],
            streams=DoubleStreams(0),
            scale=lambda: Scale(mean=-0.1, deviation=0.05),
        )
        self.alpha_bar = tiny_pipeline().scheduler.alphas_cumprod.double()

    def move(self, seed: int = 2, size: float = 0.03) -> None:
        """Take the policy elsewhere, so that ratios are not 1."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.backbone.parameters():
            parameter.data += size * torch.randn(parameter.shape, generator=generator).double()

    def eps(self, x: Tensor, t: int, prompts: Sequence[str], *, base: bool = False) -> Tensor:
        """The guided prediction, in two passes."""
        unet = self.base if base else self.backbone.denoiser

        def one(texts: Sequence[str]) -> Tensor:
            return unet(x, t, encoder_hidden_states=self.backbone.encode(texts)[0]).sample

        empty = one([""] * len(prompts))
        return empty + GUIDANCE * (one(prompts) - empty)

    def x0(self, x: Tensor, t: int, eps: Tensor) -> Tensor:
        a = self.alpha_bar[t]
        return (x - (1 - a).sqrt() * eps) / a.sqrt()

    def gaussian(self, i: int, x: Tensor, eps: Tensor) -> torch.distributions.Normal:
        """Of the next latents, by DDIM's equations 12 and 16 with eta 1."""
        now, then = self.alpha_bar[TIMESTEPS[i]], self.alpha_bar[max(TIMESTEPS[i] - 333, 0)]
        variance = (1 - then) / (1 - now) * (1 - now / then)
        clean = self.x0(x, TIMESTEPS[i], eps)
        mean = then.sqrt() * clean + (1 - then - variance).sqrt() * eps
        return torch.distributions.Normal(mean, math.sqrt(variance))

    def log_probs(self, data: Any, scored: Sequence[int], *, base: bool = False) -> Tensor:
        """Of the drawn latents of a round under the model as it is, (N, scored)."""
        columns = []
        for i in scored:
            x, following = data.latents[:, i], data.latents[:, i + 1]
            density = self.gaussian(i, x, self.eps(x, TIMESTEPS[i], data.prompts, base=base))
            columns.append(density.log_prob(following).mean((1, 2, 3)))
        return torch.stack(columns, 1)


def compare(world: World, method: Any, expected: Callable[[], Tensor], phase: int = 0) -> None:
    """An update's loss and gradient are those of ``expected``, a loss written by hand."""
    parameters = world.backbone.parameters()
    loss, _ = method.learn(0, phase)
    found = [p.grad.clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    by_hand = expected()
    gradient = torch.autograd.grad(by_hand, parameters)
    assert abs(loss - float(by_hand.detach())) < 1e-9 * (1 + abs(loss))
    assert sum(g.square().sum() for g in gradient) > 0
    for ours, theirs in zip(found, gradient, strict=True):
        assert (ours - theirs).norm() < 1e-7 * theirs.norm() + 1e-14
