"""Gradients within the range of float16, which ends at 6e-8 and 65504.

On the way back into a half-precision module a gradient is multiplied by a power of two that brings
its largest entry to about 1, and divided by it where it leaves. The factor is a power of two, so
the result is exact. (PyTorch's ``GradScaler`` scales the loss, which here belongs to methods.)
"""

from __future__ import annotations

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


class GradientRange:
    """One module's scale; after ``reset`` the next gradient sets it."""

    def __init__(self) -> None:
        self.scale: Tensor | None = None

    def reset(self) -> None:
        """Begin a new graph. Gradients that meet in one parameter must share one scale."""
        self.scale = None

    def scale_gradient_in(self, output: Tensor) -> Tensor:
        """Scale the gradient of the module's ``output``, float32."""
        if output.requires_grad:
            output.register_hook(self._up)
        return output

    def unscale_gradient_out(self, value: Tensor) -> Tensor:
        """Scale back the gradient of an input of the module, float32, or of a parameter."""
        if not value.requires_grad:
            return value
        value = value if value.is_leaf else value * 1
        value.register_hook(self._down)
        return value

    def _up(self, gradient: Tensor) -> Tensor:
        if self.scale is None:
            largest = gradient.float().abs().amax().nan_to_num(1.0, 1.0).clamp(2.0**-100, 2.0**100)
            self.scale = torch.exp2(-largest.log2().round())
        return gradient * self.scale

    def _down(self, gradient: Tensor) -> Tensor:
        assert self.scale is not None, "a gradient left a module that none had entered"
        return gradient / self.scale
