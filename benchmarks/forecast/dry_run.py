"""A backbone that computes nothing: methods run against it to be counted, not to learn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.backbone.checkpointing import Plan
from benchmarks.forecast.meta_model import Bytes, Cost, Model, Needs, Weightless

NOTHING = Bytes(0, 0, 0)


class Hollow(Weightless):
    """A backbone that computes nothing, counts, and holds as many bytes as it is told."""

    def __init__(self, model: Model, memory: Plan, costs: dict[str, Cost]) -> None:
        real = model.backbone
        channels, side, _ = real.latent_shape if costs else (1, 1, 1)
        scale = 2 ** (len(real.vae.config.block_out_channels) - 1) if costs else 1
        unet = Shell(costs.get("unet"), model.trainable, None, 1)
        unet.config = SimpleNamespace(in_channels=channels, sample_size=side)  # type: ignore[assignment]
        vae = HollowVAE(Shell(costs.get("decode"), 0, 3, scale), real.vae.config)
        super().__init__(unet, vae, model.shape, "cpu", memory)
        if not costs:
            self._tokens = (1, 1)
            if memory == "unet":  # what has a price is counted
                self.ledger.prices |= model.prices


class Shell(nn.Module):
    """Returns zeros of the right shape and holds memory; ``size`` trainable numbers."""

    def __init__(self, cost: Cost | None, size: int, channels: int | None, scale: int) -> None:
        super().__init__()
        self.cost, self.channels, self.scale = cost, channels, scale
        size, device = (size, "meta") if cost else (1, "cpu")
        self.lora_all = nn.Parameter(torch.zeros(size, device=device))

    def add_adapter(self, config: Any) -> None:
        """Its numbers stand for the LoRA matrices."""
        self.lora_all.requires_grad_()

    def forward(self, given: Tensor, *args: Any, **kwargs: Any) -> Any:
        n, channels, height, width = given.shape
        needs: Needs = "input" if given.requires_grad else "weights"
        if not torch.is_grad_enabled():
            needs = "nothing"
        cost = self.cost(n, needs) if self.cost else NOTHING
        size = (n, self.channels or channels, self.scale * height, self.scale * width)
        output: Tensor = Hold.apply(given, self.lora_all, size, cost)  # type: ignore[no-untyped-call]
        return output if self.channels else SimpleNamespace(sample=output)


class HollowVAE(nn.Module):
    """The decoder and what the backbone asks beside it."""

    dtype = torch.float32

    def __init__(self, decoder: Shell, config: Any) -> None:
        super().__init__()
        self.decoder, self.config = decoder, config

    def decode(self, latents: Tensor) -> Any:
        """Pictures of zeros."""
        return SimpleNamespace(sample=self.decoder(latents))


class Hold(torch.autograd.Function):
    """Zeros forward and backward, with the bytes of the real thing."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, size: Any, cost: Bytes) -> Tensor:
        ctx.cost = cost
        output = torch.zeros(size, device=given.device)
        kept = _block(cost.kept - _size(output))
        _block(cost.forward)
        ctx.save_for_backward(given, weight, kept)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        given, weight, _ = ctx.saved_tensors
        _block(ctx.cost.backward - _size(gradients[0]))
        return torch.zeros_like(given), torch.zeros_like(weight), None, None


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _block(size: float) -> Tensor:
    return torch.empty(max(int(size), 1), dtype=torch.uint8, device="meta")
