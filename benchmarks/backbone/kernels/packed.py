"""Products with frozen weights in the order in which oneDNN, PyTorch's library on CPUs, uses them.

In every call of a convolution, and of a linear layer in bfloat16, PyTorch has the weights brought
into that order. Here this happens once, by the operators that TorchInductor's freezing uses; the
results are equal to the last bit. Elsewhere, and while compiling, PyTorch's functions are called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, ...]

ONE = (1, 1)
LIBRARY: Any = torch.ops.mkldnn
AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(LIBRARY, "_convolution_pointwise")
BF16 = AVAILABLE and LIBRARY._is_mkldnn_bf16_supported()


def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x W^T + b, for x (rows, in) of the type of W."""
    if w.dtype != torch.bfloat16 or not _packs(w):  # in float32 weights are used as they lie
        return F.linear(x, w, b)
    order = remembered(w, "linear", lambda: LIBRARY._reorder_linear_weight(w, len(x)))
    result: Tensor = LIBRARY._linear_pointwise.default(x, order, b, "none", [], "")
    return result


def linear_back(gradient: Tensor, w: Tensor) -> Tensor:
    """The gradient of ``linear`` with respect to x."""
    if w.dtype != torch.bfloat16 or not _packs(w):
        return torch.mm(gradient, w)
    return linear(gradient, remembered(w, "transposed", lambda: w.t().contiguous()))


def convolution(x: Tensor, w: Tensor, b: Tensor | None, stride: Pair, pad: Pair) -> Tensor:
    """``F.conv2d``."""
    x = x.to(w.dtype)
    if not _packs(w):
        return F.conv2d(x, w, b, stride, pad)

    def order() -> Tensor:
        found: Tensor = LIBRARY._reorder_convolution_weight(w, pad, stride, ONE, 1, x.shape)
        return found

    how = pad, stride, ONE, 1, "none", [], ""
    result: Tensor = LIBRARY._convolution_pointwise.default(
        x, remembered(w, "plain", order), b, *how
    )
    return result


def transposed_convolution(
    x: Tensor, w: Tensor, b: Tensor | None, stride: Pair, pad: Pair, rest: Pair
) -> Tensor:
    """``F.conv_transpose2d``; ``rest`` is its output padding."""
    x = x.to(w.dtype)
    if not _packs(w):
        return F.conv_transpose2d(x, w, b, stride, pad, rest)
    how = pad, rest, stride, ONE, 1

    def order() -> Tensor:
        found: Tensor = LIBRARY._reorder_convolution_transpose_weight(w, *how, x.shape)
        return found

    run, packed = LIBRARY._convolution_transpose_pointwise.default, remembered(w, "back", order)
    result: Tensor = run(x, packed, b, *how, "none", [], "")
    return result


def graph(x: Tensor) -> bool:
    """Whether what is computed from x will be asked for a gradient."""
    return torch.is_grad_enabled() and x.requires_grad


def _packs(w: Tensor) -> bool:
    known = w.dtype == torch.float32 or (w.dtype == torch.bfloat16 and BF16)
    return AVAILABLE and known and w.device.type == "cpu" and not torch.compiler.is_compiling()


def remembered(weight: Tensor, name: str, make: Callable[[], Tensor]) -> Tensor:
    """What is computed from frozen weights, anew only after these have changed."""
    state = weight.data_ptr(), weight.dtype, weight._version
    before, found = weight.__dict__.get(name, (None, None))
    if before != state:
        found = make()
        weight.__dict__[name] = state, found
    return found  # type: ignore[no-any-return]
