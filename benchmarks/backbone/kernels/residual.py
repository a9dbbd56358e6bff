"""Residual blocks."""

from __future__ import annotations

from typing import Any

from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor


class ResnetBlock(ResnetBlock2D):  # type: ignore[misc]
    """Diffusers' own divides its result by 1."""

    @staticmethod
    def suits(block: ResnetBlock2D) -> bool:
        """Whether it is of the common kind: of one resolution, with silu, without dropout."""
        common = block.output_scale_factor == 1 and not block.dropout.p and not block.skip_time_act
        return common and block.upsample is None and block.downsample is None

    def forward(self, x: Tensor, temb: Tensor | None, *_: Any, **__: Any) -> Tensor:
        hidden = self.conv1(self.nonlinearity(self.norm1(x)))
        if temb is None or self.time_emb_proj is None:
            hidden = self.norm2(hidden)
        else:
            given = self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
            if self.time_embedding_norm == "scale_shift":
                scale, shift = given.chunk(2, 1)
                hidden = self.norm2(hidden) * (1 + scale) + shift
            else:
                hidden = self.norm2(hidden + given)
        hidden = self.conv2(self.nonlinearity(hidden))
        result: Tensor = (x if self.conv_shortcut is None else self.conv_shortcut(x)) + hidden
        return result
