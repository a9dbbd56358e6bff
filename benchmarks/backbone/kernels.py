"""The same mathematics as PyTorch's and peft's modules in an order that takes less time.

A LoRA layer adds its product into the base layer's result. On a CPU, convolutions over few pixels
are one product with weights where they lie, and half precision avoids two slow kernels of PyTorch.
What each gains: ``python -m benchmarks.speed --levers``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention as AttentionLayer
from diffusers.models.upsampling import Upsample2D
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HALF = (torch.float16, torch.bfloat16)
#: A convolution with at least this many output channels per output pixel is done as one product.
CHANNELS_PER_PIXEL = 4
#: Up to this many pixels, attention in half precision is done in single precision.
SHORT = 256


def install(*models: nn.Module) -> None:
    """Let the modules of models on a CPU work by the classes below."""
    for module in (module for model in models for module in model.modules()):
        if type(module) is nn.Conv2d:
            module.__class__ = Conv2d
        elif type(module) is nn.GroupNorm:
            module.__class__ = GroupNorm
        elif type(module) is Upsample2D and Upsample.suits(module):
            module.__class__ = Upsample
        elif isinstance(module, AttentionLayer) and Attention.suits(module):
            module.set_processor(Attention())


def few(pixels: int, channels: int) -> bool:
    """Whether a convolution with so many of them in its output is done as one product."""
    return CHANNELS_PER_PIXEL * pixels <= channels


class LoraLinear(PeftLinear):  # type: ignore[misc]
    """x W^T + b + (x A^T) B^T, with peft's matrices A and B; their scale is 1."""

    def forward(self, x: Tensor) -> Tensor:
        base = self.base_layer
        if self.disable_adapters:
            return base(x)
        matrices = self.lora_A["default"].weight, self.lora_B["default"].weight
        result: Tensor = _LoraProduct.apply(  # type: ignore[no-untyped-call]
            x, base.weight, base.bias, *matrices
        )
        return result


class _LoraProduct(torch.autograd.Function):
    """In the precision of W; A and B are cast to it, and their gradients are in their own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, a: Tensor, up: Tensor) -> Tensor:
        rows, down, lift = x.to(w.dtype).flatten(0, -2), a.to(w.dtype), up.to(w.dtype)
        inner = F.linear(rows, down)
        ctx.save_for_backward(x, w, inner, a, up)
        result = F.linear(rows, w, b).addmm_(inner, lift.t())
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, w, inner, a, up = ctx.saved_tensors
        rows, down, lift = x.to(w.dtype).flatten(0, -2), a.to(w.dtype), up.to(w.dtype)
        gradient = gradient.to(w.dtype).flatten(0, -2)
        back = gradient @ lift
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ w).addmm_(back, down).view_as(x).to(x.dtype)
        # The narrow matrix on the left: MKL takes half as long as for gradient.T @ inner.
        of_a, of_up = (back.T @ rows).to(a.dtype), (inner.T @ gradient).T.to(up.dtype)
        return of_x, None, None, of_a, of_up


class Conv2d(nn.Conv2d):
    """Few pixels: the neighbourhoods side by side, times the weights.

    PyTorch's kernel brings all weights into another order in every call, which takes longer than
    using them.
    """

    def forward(self, x: Tensor) -> Tensor:
        plain = self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        if isinstance(self.padding, str) or not plain:
            return super().forward(x)
        (tall, wide), (up, left), (down, right) = self.kernel_size, self.padding, self.stride
        height = (x.shape[2] + 2 * up - tall) // down + 1
        width = (x.shape[3] + 2 * left - wide) // right + 1
        if not few(len(x) * height * width, self.out_channels):
            return super().forward(x)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, up, up))
        shifted = [
            padded[:, i : i + down * height : down, j : j + right * width : right]
            for i in range(tall)
            for j in range(wide)
        ]
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(torch.cat(shifted, -1), weight, self.bias).permute(0, 3, 1, 2)


class Upsample(Upsample2D):
    """Doubling every pixel, then a 3x3 convolution: one transposed convolution of 4x4, stride 2.

    Each output pixel sees four distinct input pixels only, so four products do for nine: weights
    that meet the same pixel are added up beforehand.
    """

    @staticmethod
    def suits(layer: Upsample2D) -> bool:
        """Whether it is such a pair with frozen weights."""
        conv, plain = getattr(layer, "conv", None), layer.interpolate and layer.norm is None
        return (
            plain
            and isinstance(conv, nn.Conv2d)
            and (conv.kernel_size, conv.padding) == ((3, 3), (1, 1))
            and not conv.weight.requires_grad
        )

    def forward(self, x: Tensor, output_size: Any = None, *_: Any, **__: Any) -> Tensor:
        conv = self.conv
        if output_size is not None or few(4 * x[:, 0].numel(), conv.out_channels):
            result: Tensor = super().forward(x, output_size)
            return result
        if "summed" not in self._buffers:
            self.register_buffer("summed", _summed(conv.weight), persistent=False)
        return F.conv_transpose2d(x, self.summed, conv.bias, stride=2, padding=1)


def _summed(weight: Tensor) -> Tensor:
    """(out, in, 3, 3) to (in, out, 4, 4)."""
    flipped = F.pad(weight.float().flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    rows = flipped[:, :, 1:] + flipped[:, :, :-1]
    whole = rows[..., 1:] + rows[..., :-1]
    return whole.to(weight.dtype, memory_format=torch.channels_last)


class GroupNorm(nn.GroupNorm):
    """Half precision: computed in single precision, whose kernel is made for channels last."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in HALF:
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


class Attention:
    """Short attention in single precision: the backward pass of the half takes many times as long.

    With or without gradient, so that DDPO's ratio is exactly 1 before the first update.
    A processor for those attention layers of diffusers that have neither mask nor norms, as in the
    transformer blocks of U-Nets.
    """

    @staticmethod
    def suits(layer: AttentionLayer) -> bool:
        """Whether it is one of those."""
        more = layer.group_norm or layer.norm_q or layer.residual_connection
        return layer.to_q.weight.dtype in HALF and not more

    def __call__(
        self, layer: Any, pixels: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        given = pixels if encoder_hidden_states is None else encoder_hidden_states
        heads = [
            projected.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
            for projected in (layer.to_q(pixels), layer.to_k(given), layer.to_v(given))
        ]
        wider = pixels.shape[1] <= SHORT
        with torch.autocast(pixels.device.type, enabled=not wider):
            q, k, v = (h.float() if wider else h for h in heads)
            mixed = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = layer.to_out[0](mixed.transpose(1, 2).flatten(2).to(heads[0].dtype))
        return result
