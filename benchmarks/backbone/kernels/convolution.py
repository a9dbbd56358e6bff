"""Convolutions with frozen weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from benchmarks.backbone.kernels.packed import (
    Pair,
    cached_per_weight,
    convolution,
    custom_op,
    needs_grad,
    transposed_convolution,
)
from benchmarks.backbone.kernels.reference import by_reference


class Conv2d(nn.Conv2d):
    """Frozen, it keeps nothing of its input; on a CPU its weights are packed once."""

    def forward(self, x: Tensor) -> Tensor:
        common = self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        if not common or isinstance(self.padding, str) or self.weight.requires_grad:
            return super().forward(x)
        if by_reference():
            return super().forward(x)
        given = x.to(self.weight.dtype), self.weight, self.bias, self.stride, self.padding
        return _Frozen.apply(*given) if needs_grad(x) else convolution(*given)  # type: ignore


class _Frozen(torch.autograd.Function):
    """PyTorch's own keeps the input for the gradient of the weights, wanted or not."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, stride: Pair, pad: Pair
    ) -> Tensor:
        ctx.save_for_backward(w)
        ctx.given = x.shape, stride, pad
        return convolution(x, w, b, stride, pad)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (w,), (shape, stride, pad) = ctx.saved_tensors, ctx.given
        rest = tuple((shape[i + 2] + 2 * pad[i] - w.shape[i + 2]) % stride[i] for i in (0, 1))
        of_x = transposed_convolution(gradient, w, None, stride, pad, rest)
        return of_x, None, None, None, None


class _Doubling(torch.autograd.Function):
    """For 3x3 weights; it keeps no input either."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(w)
        return doubling(x, w, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return doubling_back(gradient, *ctx.saved_tensors), None, None


@custom_op(
    "(Tensor x, Tensor w, Tensor? b) -> Tensor",
    lambda x, w, b: F.conv2d(F.interpolate(x, scale_factor=2.0), w, b, padding=1),
)
def doubling(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Every pixel doubled, then a 3x3 convolution."""
    weight = cached_per_weight(w, "summed", lambda: summed(w))
    return transposed_convolution(x, weight, b, (2, 2), (1, 1), (0, 0))


@custom_op(
    "(Tensor x, Tensor w) -> Tensor",
    lambda x, w: F.conv_transpose2d(x[..., ::2, ::2], w, None, 1, 1),
)
def doubling_back(gradient: Tensor, w: Tensor) -> Tensor:
    """The gradient of ``doubling`` with respect to x."""
    weight = cached_per_weight(w, "summed", lambda: summed(w))
    return convolution(gradient, weight, None, (2, 2), (1, 1))


class Upsample(Upsample2D):  # type: ignore[misc]
    """Doubling every pixel, then a 3x3 convolution: one transposed convolution of 4x4, stride 2.

    Three neighbouring output pixels lie on two input pixels, so that four products do for nine: the
    weights that meet the same pixel are added up beforehand.
    """

    @staticmethod
    def suits(layer: Upsample2D) -> bool:
        """Whether it is such a pair, with frozen weights."""
        conv, plain = getattr(layer, "conv", None), layer.interpolate and layer.norm is None
        return (
            plain
            and isinstance(conv, nn.Conv2d)
            and (conv.kernel_size, conv.padding) == ((3, 3), (1, 1))
            and not conv.weight.requires_grad
        )

    def forward(self, x: Tensor, output_size: Any = None, *_: Any, **__: Any) -> Tensor:
        conv = self.conv
        if output_size is not None or by_reference():
            result: Tensor = super().forward(x, output_size)
            return result
        given = x, conv.weight, conv.bias
        return _Doubling.apply(*given) if needs_grad(x) else doubling(*given)  # type: ignore


def summed(weight: Tensor) -> Tensor:
    """The transposed convolution's weights (in, out, 4, 4), from (out, in, 3, 3)."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    flipped = F.pad(wide.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    rows = flipped[:, :, 1:] + flipped[:, :, :-1]
    whole = rows[..., 1:] + rows[..., :-1]
    return whole.to(weight.dtype, memory_format=torch.channels_last)
