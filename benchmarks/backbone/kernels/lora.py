"""Linear layers with LoRA matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from benchmarks.backbone.kernels.packed import linear, linear_back
from benchmarks.backbone.kernels.trajectory import cached_per_trajectory, caching


class LoraLinear(PeftLinear):  # type: ignore[misc]
    """x W^T + b + (x A^T) B^T, with peft's matrices A and B, added in place; their scale is 1."""

    def forward(self, x: Tensor) -> Tensor:
        base = self.base_layer
        if self.disable_adapters:
            return base(x)
        matrices = self.lora_A["default"].weight, self.lora_B["default"].weight
        given = x, base.weight, base.bias, *matrices
        if not torch.is_grad_enabled():
            return _forward(*given)[0]
        result: Tensor = _LoraProduct.apply(*given)  # type: ignore[no-untyped-call]
        return result


def _forward(
    x: Tensor, w: Tensor, b: Tensor | None, a: Tensor, up: Tensor
) -> tuple[Tensor, Tensor]:
    """The result and x A^T, in the precision of W."""
    rows = x.to(w.dtype).flatten(0, -2)
    down, lift = cached_per_trajectory(
        "both matrices", a, lambda: (a.to(w.dtype), up.to(w.dtype).t())
    )
    inner = F.linear(rows, down)
    result = linear(rows, w, b).addmm_(inner, lift)
    return result.view(*x.shape[:-1], -1), inner


def can_fuse(layers: Sequence[nn.Module], x: Tensor) -> bool:
    """Whether it saves time to do layers as one.

    True for bfloat16 on a CPU inside a trajectory: there each product with a narrow matrix costs as
    much as with one three times as wide, and what the layers share is cached.
    """
    half = x.dtype == torch.bfloat16 and x.device.type == "cpu" and caching()
    return half and all(
        isinstance(e, LoraLinear) and e.base_layer.bias is None and not e.disable_adapters
        for e in layers
    )


def fused(layers: Sequence[Any], x: Tensor) -> Tensor:
    """The results of several layers for the same x, one behind the other in the last dimension."""

    def matrices() -> tuple[Tensor, Tensor, Tensor]:
        w = torch.cat([layer.base_layer.weight for layer in layers])
        a = torch.cat([layer.lora_A["default"].weight for layer in layers])
        b = torch.block_diag(*(layer.lora_B["default"].weight for layer in layers))
        return w, a.to(w.dtype), b.to(w.dtype).t()

    w, down, lift = cached_per_trajectory((*layers,), layers[0].base_layer.weight, matrices)
    rows = x.flatten(0, -2)
    result = linear(rows, w).addmm_(F.linear(rows, down), lift)
    return result.view(*x.shape[:-1], -1)


class _LoraProduct(torch.autograd.Function):
    """In the precision of W; A and B are cast to it, and their gradients are in their own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, a: Tensor, up: Tensor) -> Tensor:
        result, inner = _forward(x, w, b, a, up)
        ctx.save_for_backward(x, w, inner, a, up)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, w, inner, a, up = ctx.saved_tensors
        rows, down, lift = x.to(w.dtype).flatten(0, -2), a.to(w.dtype), up.to(w.dtype)
        gradient = gradient.to(w.dtype).flatten(0, -2)
        back = torch.mm(gradient, lift)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = linear_back(gradient, w).addmm_(back, down).view_as(x).to(x.dtype)
        # The narrow matrix on the left: MKL takes half as long as for gradient.t() @ inner.
        of_a = torch.mm(back.t(), rows).to(a.dtype)
        of_up = torch.mm(inner.t(), gradient).t().to(up.dtype)
        return of_x, None, None, of_a, of_up
