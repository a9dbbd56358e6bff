"""A model on the meta device: the FLOPs and bytes of its passes, without weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.backbone import DTYPES
from benchmarks.backbone.checkpointing import recompute_blocks
from benchmarks.backbone.kernels import packed
from benchmarks.compute.ledger import Part, Pass
from benchmarks.config import Precision
from benchmarks.forecast.live_bytes import Live
from benchmarks.forecast.shapes import on_meta


@dataclass(frozen=True)
class PeakBytes:
    """Bytes of one call.

    ``kept`` lives until the backward pass; ``forward`` and ``backward`` are the extra bytes at each
    pass's peak.
    """

    kept: float
    forward: float
    backward: float

    def at(self, samples: int, double: PeakBytes) -> PeakBytes:
        """Extended linearly, from one sample (self) and two (``double``)."""
        ones, twos = dataclasses.astuple(self), dataclasses.astuple(double)
        return PeakBytes(*(a + (samples - 1) * (b - a) for a, b in zip(ones, twos, strict=True)))


#: Which gradients are wanted: none, the weights', or the weights' and the input's.
WantedGradients = Literal["none", "weights", "input"]
#: The bytes of a call with so many samples.
Cost = Callable[[int, WantedGradients], PeakBytes]


@dataclass(frozen=True)
class Costs:
    """The bytes of calls of both parts of a model, and the shapes of what they give."""

    denoiser: Cost
    decoder: Cost
    conditions: list[tuple[int, ...]]  # of one prompt
    image: tuple[int, ...]  # (3, H, W)


class MetaModel:
    """A model on the meta device: its prices and bytes, in one precision throughout."""

    def __init__(self, name: str, precision: Precision, rank: int = 4) -> None:
        self.dtype, self.backbone = DTYPES[precision], on_meta(name, rank)
        self._measured: dict[Any, tuple[PeakBytes, PeakBytes]] = {}

    @cached_property
    def prices(self) -> dict[Pass, float]:
        """FLOPs of each kind of pass, the reward's aside."""
        self._cast(torch.float32)
        self.backbone.price()
        return self.backbone.ledger.prices

    @property
    def trainable(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.backbone.parameters())

    @property
    def frozen_bytes(self) -> float:
        """Of the weights that are not trained."""
        kinds = dict.fromkeys(self.backbone.modules(), self.dtype)
        kinds[self.backbone.autoencoder] = self.backbone.autoencoder_dtype(self.dtype)
        sizes = ((p.numel(), kinds[m].itemsize) for m in kinds for p in m.parameters())
        return sum(n * size for n, size in sizes) - self.trainable * self.dtype.itemsize

    @property
    def packed_bytes(self) -> float:
        """Of the copies of frozen weights that kernels on a CPU keep: one in the order of each
        direction, and of linear layers, in bfloat16 only, one that is transposed.
        """
        autoencoder = self.backbone.autoencoder
        decoder = getattr(autoencoder, "decoder", autoencoder)
        layers = [*self.backbone.denoiser.modules(), *decoder.modules()]
        if not packed.packs_type(self.dtype):
            return 0.0
        copies = 2 * sum(_frozen(layer) for layer in layers if isinstance(layer, nn.Conv2d))
        if self.dtype == torch.bfloat16:
            copies += 3 * sum(_frozen(layer) for layer in layers if isinstance(layer, nn.Linear))
        return copies * self.dtype.itemsize

    @property
    def condition_shapes(self) -> list[tuple[int, ...]]:
        """Of one prompt's conditioning."""
        return [tuple(tensor.shape[1:]) for tensor in self.backbone.encode([""])]

    def costs(self, by_block: bool) -> Costs:
        """The bytes of calls, with or without the recomputation of blocks."""
        denoiser, decoder = self.denoiser(by_block), self.decoder(by_block)
        with torch.no_grad():
            images = self.backbone.pixels(self._latents(1, "none"))
        return Costs(denoiser, decoder, self.condition_shapes, tuple(images.shape[1:]))

    def denoiser(
        self,
        by_block: bool,
        fused: bool = True,
        among: Sequence[WantedGradients] = get_args(WantedGradients),
    ) -> Cost:
        """The bytes of calls of the denoiser; ``fused`` attention keeps no probabilities.

        ``among`` the gradients wanted; others are not measured.
        """

        def prepared(samples: int, wanted: WantedGradients) -> Callable[[], Tensor]:
            condition = tuple(  # one for all sampling steps: not among the bytes of a call
                torch.empty(samples, *shape, device="meta", dtype=self.dtype)
                for shape in self.condition_shapes
            )
            timesteps = torch.zeros(samples, dtype=torch.long, device="meta")
            denoise = self.backbone.denoise
            return lambda: denoise(self._latents(samples, wanted), timesteps, condition)

        return self._cost("denoiser", prepared, by_block, fused, among)

    def decoder(self, by_block: bool) -> Cost:
        """The bytes of calls of the decoder."""

        def prepared(samples: int, wanted: WantedGradients) -> Callable[[], Tensor]:
            return lambda: self.backbone.pixels(self._latents(samples, wanted))

        return self._cost("decoder", prepared, by_block, True, get_args(WantedGradients))

    def _latents(self, samples: int, wanted: WantedGradients) -> Tensor:
        shape = (samples, *self.backbone.latent_shape)
        latents = torch.empty(shape, device="meta", dtype=self.dtype)
        return latents.requires_grad_(wanted == "input")

    def _cast(self, dtype: torch.dtype) -> None:
        own = self.backbone.autoencoder_dtype(dtype)
        nn.Module.to(self.backbone.denoiser, dtype)  # diffusers' own prints a warning
        nn.Module.to(self.backbone.autoencoder, own)

    def _cost(
        self,
        part: Part,
        prepared: Callable[[int, WantedGradients], Callable[[], Tensor]],
        by_block: bool,
        fused: bool,
        among: Sequence[WantedGradients],
    ) -> Cost:
        self._cast(self.dtype)
        for module in (self.backbone.denoiser, self.backbone.autoencoder):
            recompute_blocks(module, by_block)
        for wanted in among:  # now, not in the middle of what is being planned
            if (key := (part, by_block, fused, wanted)) not in self._measured:
                one, two = (self._measure(prepared(n, wanted), wanted, fused) for n in (1, 2))
                self._measured[key] = (one, two)

        def cost(samples: int, wanted: WantedGradients) -> PeakBytes:
            one, two = self._measured[part, by_block, fused, wanted]
            return one.at(samples, two)

        return cost

    def _measure(
        self, call: Callable[[], Tensor], wanted: WantedGradients, fused: bool
    ) -> PeakBytes:
        for parameter in self.backbone.parameters():  # its gradient is the trainer's, not a call's
            parameter.grad = torch.zeros_like(parameter)
        live = Live()
        attention = fused_attention() if fused else nullcontext()
        with live, torch.set_grad_enabled(wanted != "none"), attention:
            output = call()
            kept, forward = live.now, live.peak
            live.peaks.clear()
            if output.requires_grad:
                output.sum().backward()
        for parameter in self.backbone.parameters():
            parameter.grad = None
        return PeakBytes(kept, forward - kept, live.peak - kept)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention by a fused kernel, which the meta device would not choose.

    PyTorch's function is exchanged: a mode would not reach what the backward pass recomputes.
    """
    before = F.scaled_dot_product_attention
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def fused(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **_: Any) -> Tensor:
        output: Tensor = kernel(query, key, value, attn_mask=attn_mask)[0]
        return output

    F.scaled_dot_product_attention = fused  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


def _frozen(layer: nn.Conv2d | nn.Linear) -> int:
    return 0 if layer.weight.requires_grad else layer.weight.numel()
