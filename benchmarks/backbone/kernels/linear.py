"""Linear layers with frozen weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from benchmarks.backbone.kernels import packed


class Linear(nn.Linear):
    """For bfloat16 on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        if w.requires_grad or x.dtype != w.dtype or not packed.packs_linear(w):
            return super().forward(x)
        given = x.reshape(-1, x.shape[-1]), w, self.bias
        rows = _Frozen.apply(*given) if packed.needs_grad(x) else packed.linear(*given)  # type: ignore
        return rows.view(*x.shape[:-1], -1)


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(w)
        return packed.linear(x, w, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return packed.linear_back(gradient.contiguous(), *ctx.saved_tensors), None, None
