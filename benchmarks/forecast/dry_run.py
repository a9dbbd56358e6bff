"""A backbone that computes nothing: methods run against it to be counted, not to learn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import registry
from benchmarks.api import (
    Condition,
    Context,
    Keep,
    Method,
    Reward,
    Sampler,
    Sampling,
    Scale,
    UserError,
)
from benchmarks.backbone.base import BaseBackbone
from benchmarks.compute.ledger import KINDS, Ledger, Pass
from benchmarks.forecast.meta_model import Cost, Costs, MetaModel, PeakBytes, WantedGradients
from benchmarks.streams import Streams

#: Optimizer steps counted: enough for the mean of a random truncation, a few rounds of DDPO.
STEPS = 24


class DryRun(BaseBackbone):
    """A family that computes nothing and counts; with ``costs`` it also holds the real bytes.

    Without them its tensors have one number per sample. Sampling steps are those of the model.
    """

    component = "denoiser"

    def __init__(self, model: MetaModel, keep: Keep, costs: Costs | None = None) -> None:
        self.model, self.two_passes = model, model.backbone.two_passes
        self.condition_shapes = costs.conditions if costs else [(1,)]
        latents = model.backbone.latent_shape if costs else (1, 1, 1)
        image = costs.image if costs else (3, 1, 1)
        super().__init__(
            Ledger(),
            denoiser=FakeModule(
                costs.denoiser if costs else None, latents, model.trainable if costs else 1
            ),
            autoencoder=FakeModule(costs.decoder if costs else None, image, 0),
            latent_shape=latents,
            rank=0,  # what is trained is one flat parameter
            keep=keep,
        )

    @property
    def train_timesteps(self) -> int:
        """The model's."""
        return self.model.backbone.train_timesteps

    def sampler(self, steps: int, eta: float = 0.0) -> Sampler:
        """The model's."""
        return self.model.backbone.sampler(steps, eta)

    def noised(
        self, latents: Tensor, noise: Tensor, timesteps: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """The model's."""
        return self.model.backbone.noised(latents, noise, timesteps)

    def conditions(self, prompts: Sequence[str]) -> Condition:
        """Zeros."""
        return tuple(torch.zeros(len(prompts), *shape) for shape in self.condition_shapes)

    def denoise(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Zeros."""
        output: Tensor = self.denoiser(latents)
        return output

    def pixels(self, latents: Tensor) -> Tensor:
        """Zeros."""
        output: Tensor = self.autoencoder(latents)
        return output

    @contextmanager
    def adapting(self, wanted: bool) -> Iterator[None]:
        """With the LoRA matrices or without them, nothing is computed."""
        yield


class FakeModule(nn.Module):
    """Returns zeros (B, *shape) and holds memory; it has ``size`` numbers to train."""

    def __init__(self, cost: Cost | None, shape: tuple[int, ...], size: int) -> None:
        super().__init__()
        self.cost, self.shape = cost, shape
        self.weight = nn.Parameter(torch.zeros(size, device="meta" if cost else "cpu"))

    def forward(self, given: Tensor) -> Tensor:
        wanted: WantedGradients = "input" if given.requires_grad else "weights"
        if not torch.is_grad_enabled():
            wanted = "none"
        cost = self.cost(len(given), wanted) if self.cost else PeakBytes(0, 0, 0)
        output: Tensor = AllocateOnly.apply(  # type: ignore[no-untyped-call]
            given, self.weight, (len(given), *self.shape), cost
        )
        return output

    def enable_gradient_checkpointing(self, function: Any) -> None:
        """Nothing to do: the cost is that of such a module, and the ledger is told."""

    def disable_gradient_checkpointing(self) -> None:
        """Nothing to do."""


class AllocateOnly(torch.autograd.Function):
    """Zeros forward and backward, with the bytes of the real thing."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, size: Any, cost: PeakBytes) -> Tensor:
        ctx.cost = cost
        output = torch.zeros(size, device=given.device)
        kept = _allocated(cost.kept - _size(output))
        _allocated(cost.forward)
        ctx.save_for_backward(given, weight, kept)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        given, weight, _ = ctx.saved_tensors
        _allocated(ctx.cost.backward - _size(gradients[0]))
        return torch.zeros_like(given), torch.zeros_like(weight), None, None


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _allocated(size: float) -> Tensor:
    return torch.empty(max(int(size), 1), dtype=torch.uint8, device="meta")


class ShapeOnlyStreams(Streams):
    """Draws numbers that decide something, and only the shapes of noise."""

    def normal(self, purpose: str, step: int, indices: Any, shape: Sequence[int]) -> Tensor:
        if math.prod(shape) == 1:
            return super().normal(purpose, step, indices, shape)
        return torch.zeros(len(list(indices)), *shape)


class MeanPixel(Reward):
    """Stands for any reward."""

    unit, reference = "", ""

    def __init__(self, device: Any, differentiable: bool = True) -> None:
        self.differentiable = differentiable  # type: ignore[misc]

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.mean((1, 2, 3))


def started(name: str, config: Any, backbone: BaseBackbone, streams: Streams) -> Method:
    """A method ready for its first step on this backbone, with a reward that costs nothing."""
    cls = registry.methods.get(name)
    reward = MeanPixel(backbone.device, differentiable="reward_grad" in cls.needs)
    prompts = [f"prompt {i}" for i in range(45)]  # as many as the paper's animals
    context = Context(
        backbone=backbone,
        reward=backbone.ledger.counted(reward),
        prompts=lambda step, count: [prompts[i % 45] for i in range(count)],
        streams=streams,
        scale=lambda: Scale(mean=0.0, deviation=1.0),
    )
    method: Method = cls(config, context)
    return method


def counted(
    name: str, config: Any, model: MetaModel, keep: Keep, seed: int = 0
) -> list[dict[Pass, float]]:
    """What the ledger counts in each of the first ``STEPS`` optimizer steps."""
    backbone = DryRun(model, keep)
    method = _with_largest_micro_batch(name, config, backbone, Streams(seed))
    rows: list[dict[Pass, float]] = []
    before = dict.fromkeys(KINDS, 0)
    for step in range(STEPS):
        method.step(step)
        now = {kind: backbone.ledger.counts[kind] for kind in KINDS}
        rows.append({kind: now[kind] - before[kind] for kind in KINDS})
        before = now
    return rows


def _with_largest_micro_batch(
    name: str, config: Any, backbone: BaseBackbone, streams: Streams
) -> Method:
    """The method with the largest micro-batch it takes: it changes no counts and saves time."""
    if isinstance(config, Sampling):
        for micro_batch in [2**i for i in range(12, 0, -1)]:
            with suppress(UserError):
                wide = dataclasses.replace(config, micro_batch=micro_batch)
                return started(name, wide, backbone, streams)
    return started(name, config, backbone, streams)
