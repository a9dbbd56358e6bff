"""Attention of a U-Net's transformer blocks."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention as AttentionLayer
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from benchmarks.backbone.fp16_range import HALF
from benchmarks.backbone.kernels.lora import can_fuse, fused
from benchmarks.backbone.kernels.reference import by_reference
from benchmarks.backbone.kernels.trajectory import cached_per_trajectory

#: Up to this many pixels, attention in half precision on a CPU is done in single precision.
SHORT = 256


class Attention(AttentionLayer):  # type: ignore[misc]
    """Along a trajectory without gradient, keys and values of each text are computed once."""

    @staticmethod
    def suits(layer: AttentionLayer) -> bool:
        """Whether it has neither norms nor a residual, and nobody gave it another processor."""
        norms = layer.group_norm, layer.norm_q, layer.norm_cross, layer.spatial_norm
        plain = type(layer.processor) is AttnProcessor2_0 and layer.rescale_output_factor == 1
        return plain and not any(norms) and not layer.residual_connection

    def forward(
        self,
        pixels: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        if attention_mask is not None:
            plain: Tensor = super().forward(pixels, encoder_hidden_states, attention_mask, **more)
            return plain
        layers, text = (self.to_q, self.to_k, self.to_v), encoder_hidden_states
        if text is not None:
            q, (k, v) = self._heads(self.to_q(pixels)), self._of_text(text)
        elif can_fuse(layers, pixels):
            q, k, v = map(self._heads, fused(layers, pixels).chunk(3, -1))
        else:
            q, (k, v) = self._heads(self.to_q(pixels)), self._keys_and_values(pixels)
        mixed = _attend(q, k, v).transpose(1, 2).flatten(2)
        result: Tensor = self.to_out[0](mixed)
        return result

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _keys_and_values(self, given: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.to_k(given)), self._heads(self.to_v(given))

    def _of_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        if by_reference():
            return self._keys_and_values(text)
        what = self, getattr(self.to_k, "disable_adapters", None)
        return cached_per_trajectory(what, text, lambda: self._keys_and_values(text))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Short attention in half precision in single precision, if on a CPU.

    In half precision its backward pass is many times slower. Done with or without gradient, so that
    DDPO's ratio is exactly 1 before the first update.
    """
    wider = q.dtype in HALF and q.device.type == "cpu" and q.shape[2] <= SHORT
    cast = wider and torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", enabled=False) if cast else nullcontext():
        wide = [h.float() if wider else h for h in (q, k, v)]
        mixed = F.scaled_dot_product_attention(wide[0], wide[1], wide[2])
    return mixed.to(q.dtype)
