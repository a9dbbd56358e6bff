"""A Stable Diffusion on the meta device: the FLOPs and bytes of its passes, without weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any, Literal, get_args
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.backbone.checkpointing import Plan, recompute_blocks
from benchmarks.backbone.lora_sd import DTYPES, LoraSD
from benchmarks.compute.ledger import Ledger
from benchmarks.config import Precision
from benchmarks.forecast.live_bytes import Live
from benchmarks.forecast.shapes import Shape, shape


@dataclass(frozen=True)
class Bytes:
    """Of one call: ``kept`` for the backward pass; how far forward and backward rise above it."""

    kept: float
    forward: float
    backward: float

    def at(self, samples: int, double: Bytes) -> Bytes:
        """Extended linearly, from one sample (self) and two (``double``)."""
        ones, twos = dataclasses.astuple(self), dataclasses.astuple(double)
        return Bytes(*(a + (samples - 1) * (b - a) for a, b in zip(ones, twos, strict=True)))


Needs = Literal["nothing", "weights", "input"]  # where a backward pass will go, the last to both
Cost = Callable[[int, Needs], Bytes]  # of a number of samples


class Weightless(LoraSD):
    """A backbone whose modules have shapes only."""

    def __init__(
        self,
        unet: Any,
        vae: Any,
        shape: Shape,
        device: str,
        memory: Plan,
        rank: int = 4,
    ) -> None:
        self._tokens = shape.tokens
        scheduler = DDIMScheduler.from_config(dict(shape.scheduler))
        parts = {"unet": unet, "vae": vae, "text_encoder": nn.Identity(), "tokenizer": None}
        pipeline: Any = SimpleNamespace(scheduler=scheduler, **parts)
        super().__init__(pipeline, Ledger(), rank=rank, device=device, memory=memory)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(prompts), *self._tokens, device=self.device)

    def _price(self) -> None:
        """Only when asked, by ``Model.prices``: it takes longer than all the rest."""

    def _unet(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        config, more = self.unet.config, {}
        if getattr(config, "addition_embed_type", None) == "text_time":  # SDXL: size and crop
            width = config.projection_class_embeddings_input_dim
            pooled = text.new_zeros(len(latents), width - 6 * config.addition_time_embed_dim)
            sizes = {"text_embeds": pooled, "time_ids": text.new_zeros(len(latents), 6)}
            more = {"added_cond_kwargs": sizes}
        output: Tensor = self.unet(latents, timesteps, encoder_hidden_states=text, **more).sample
        return output


class Model:
    """A model on the meta device: its prices and bytes, in one precision throughout."""

    def __init__(self, name: str, precision: Precision, rank: int = 4) -> None:
        self.shape, self.dtype = shape(name), DTYPES[precision]
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(dict(self.shape.unet))
            vae = AutoencoderKL.from_config(dict(self.shape.vae))
        # Under this plan everything has a price.
        self.backbone = Weightless(unet, vae, self.shape, "meta", "unet", rank)
        self._measured: dict[Any, tuple[Bytes, Bytes]] = {}

    @cached_property
    def prices(self) -> dict[str, float]:
        """FLOPs of each kind of pass, the reward's aside."""
        for module in (self.backbone.unet, self.backbone.vae):
            nn.Module.to(module, torch.float32)
        LoraSD._price(self.backbone)
        return self.backbone.ledger.prices

    @property
    def trainable(self) -> int:
        """How many parameters the LoRA matrices have."""
        return sum(p.numel() for p in self.backbone.parameters())

    @property
    def frozen_bytes(self) -> float:
        """Of the weights of U-Net, decoder and encoder, and text encoders."""
        modules = (self.backbone.unet, self.backbone.vae)
        count = sum(p.numel() for module in modules for p in module.parameters())
        count += sum(_text_parameters(dict(text)) for text in self.shape.text) - self.trainable
        return count * self.dtype.itemsize

    @property
    def packed_bytes(self) -> float:
        """Of the copies of frozen weights that kernels on a CPU keep: one in the order of each
        direction, and of linear layers, in bfloat16 only, one that is transposed.
        """
        parts = [*self.backbone.unet.modules(), *self.backbone.vae.decoder.modules()]
        copies = 2 * sum(_frozen(part) for part in parts if isinstance(part, nn.Conv2d))
        if self.dtype == torch.bfloat16:
            copies += 3 * sum(_frozen(part) for part in parts if isinstance(part, nn.Linear))
        return copies * self.dtype.itemsize

    def unet(
        self, inside: bool, fused: bool = True, among: Sequence[Needs] = get_args(Needs)
    ) -> Cost:
        """The bytes of calls of the U-Net."""
        dtype, (length, width) = self.dtype, self.shape.tokens

        def call(samples: int, needs: Needs) -> Tensor:
            latents = torch.empty(samples, *self.backbone.latent_shape, device="meta", dtype=dtype)
            latents.requires_grad_(needs == "input")
            text = torch.empty(samples, length, width, device="meta", dtype=dtype)
            time = torch.zeros(samples, dtype=torch.long, device="meta")
            return self.backbone._unet(latents, time, text)

        return self._cost("unet", call, inside, fused, among)

    def decode(self, inside: bool) -> Cost:
        """The bytes of calls of the decoder."""

        def call(samples: int, needs: Needs) -> Tensor:
            shape = (samples, *self.backbone.latent_shape)
            latents = torch.empty(shape, device="meta", dtype=self.dtype)
            latents.requires_grad_(needs == "input")
            return self.backbone.vae.decode(latents).sample

        return self._cost("decode", call, inside, True, get_args(Needs))

    def _cost(
        self,
        name: str,
        call: Callable[[int, Needs], Tensor],
        inside: bool,
        fused: bool,
        among: Sequence[Needs],
    ) -> Cost:
        for module in (self.backbone.unet, self.backbone.vae):
            nn.Module.to(module, self.dtype)  # diffusers' own prints a warning
            recompute_blocks(module, inside)
        for needs in among:  # now, not in the middle of what is being planned
            if (key := (name, inside, fused, needs)) not in self._measured:
                one, two = (self._measure(partial(call, n, needs), needs, fused) for n in (1, 2))
                self._measured[key] = (one, two)

        def cost(samples: int, needs: Needs) -> Bytes:
            one, two = self._measured[name, inside, fused, needs]
            return one.at(samples, two)

        return cost

    def _measure(self, call: Callable[[], Tensor], needs: Needs, fused: bool) -> Bytes:
        for parameter in self.backbone.parameters():  # its gradient is the trainer's, not a call's
            parameter.grad = torch.zeros_like(parameter)
        live = Live()
        # In the module: a mode would not reach what the backward pass recomputes.
        kernel = patch.object(F, "scaled_dot_product_attention", _fused)
        with live, torch.set_grad_enabled(needs != "nothing"), kernel if fused else nullcontext():
            output = call()
            kept, forward = live.now, live.peak
            live.peaks.clear()
            if output.requires_grad:
                output.sum().backward()
        for parameter in self.backbone.parameters():
            parameter.grad = None
        return Bytes(kept, forward - kept, live.peak - kept)


def _fused(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **_: Any) -> Tensor:
    """Attention by a fused kernel, which the meta device would not choose."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output: Tensor = kernel(query, key, value, attn_mask=attn_mask)[0]
    return output


def _frozen(layer: nn.Conv2d | nn.Linear) -> int:
    return 0 if layer.weight.requires_grad else layer.weight.numel()


def _text_parameters(config: dict[str, Any]) -> int:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        return sum(p.numel() for p in CLIPTextModel(CLIPTextConfig(**config)).parameters())
