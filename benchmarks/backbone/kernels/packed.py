"""Products with frozen weights in the order in which oneDNN, PyTorch's library on CPUs, uses them.

In every call of a convolution, and of a linear layer in bfloat16, PyTorch has the weights brought
into that order. Here this happens once, by the operators that TorchInductor's freezing uses; the
results are equal to the last bit. For other types and devices PyTorch's functions are called.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.backbone.kernels.reference import by_reference

Pair = tuple[int, ...]
Product = TypeVar("Product", bound=Callable[..., Tensor])

ONE = (1, 1)
LIBRARY: Any = torch.ops.mkldnn
AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(LIBRARY, "_convolution_pointwise")
BF16 = AVAILABLE and LIBRARY._is_mkldnn_bf16_supported()


def needs_grad(x: Tensor) -> bool:
    """Whether what is computed from x may be asked for its gradient with respect to x."""
    return torch.is_grad_enabled() and x.requires_grad


def packs_type(dtype: torch.dtype) -> bool:
    """Whether this CPU has products with packed weights of this type."""
    return AVAILABLE and (dtype == torch.float32 or (dtype == torch.bfloat16 and BF16))


def _packs(w: Tensor) -> bool:
    return packs_type(w.dtype) and w.device.type == "cpu" and not by_reference()


def packs_linear(w: Tensor) -> bool:
    """In float32 weights are used as they lie; a compiler has linear layers of its own."""
    return w.dtype == torch.bfloat16 and _packs(w) and not torch.compiler.is_compiling()


def cached_per_weight(weight: Tensor, name: str, make: Callable[[], Tensor]) -> Tensor:
    """What ``make`` computes from frozen weights, anew only after these have changed."""
    if weight.requires_grad or torch.compiler.is_compiling():
        return make()
    state = weight.data_ptr(), weight.dtype, weight._version
    before, found = weight.__dict__.get(name, (None, None))
    if before != state:
        found = make()
        weight.__dict__[name] = state, found
    return found


def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x W^T + b, for x (rows, in) of the type of W."""
    if not packs_linear(w):
        return F.linear(x, w, b)
    order = cached_per_weight(w, "linear", lambda: LIBRARY._reorder_linear_weight(w, len(x)))
    result: Tensor = LIBRARY._linear_pointwise.default(x, order, b, "none", [], "")
    return result


def linear_back(gradient: Tensor, w: Tensor) -> Tensor:
    """The gradient of ``linear`` with respect to x."""
    if not packs_linear(w):
        return torch.mm(gradient, w)
    return linear(gradient, cached_per_weight(w, "transposed", lambda: w.t().contiguous()))


def custom_op(schema: str, shape: Callable[..., Tensor]) -> Callable[[Product], Product]:
    """``torch.compile`` calls the function without looking into it; ``shape`` gives its result."""

    def register(function: Product) -> Product:
        name = f"alignprop_bench::{function.__name__}"
        operator = torch.library.custom_op(name, function, mutates_args=(), schema=schema)
        operator.register_fake(lambda *given: shape(*given).to(memory_format=torch.channels_last))

        @wraps(function)
        def call(*given: Any) -> Tensor:
            if torch.compiler.is_compiling():
                return operator(*given)
            return function(*given)

        return call  # type: ignore[return-value]

    return register


@custom_op("(Tensor x, Tensor w, Tensor? b, int[] stride, int[] pad) -> Tensor", F.conv2d)
def convolution(x: Tensor, w: Tensor, b: Tensor | None, stride: Pair, pad: Pair) -> Tensor:
    """``F.conv2d`` for x of the type of W."""
    if not _packs(w):
        return F.conv2d(x, w, b, stride, pad)
    packed = cached_per_weight(
        w,
        "convolution",
        lambda: LIBRARY._reorder_convolution_weight(w, pad, stride, ONE, 1, x.shape),
    )
    run, how = LIBRARY._convolution_pointwise.default, (pad, stride, ONE, 1)
    result: Tensor = run(x, packed, b, *how, "none", [], "")
    return result


@custom_op(
    "(Tensor x, Tensor w, Tensor? b, int[] stride, int[] pad, int[] rest) -> Tensor",
    F.conv_transpose2d,
)
def transposed_convolution(
    x: Tensor, w: Tensor, b: Tensor | None, stride: Pair, pad: Pair, rest: Pair
) -> Tensor:
    """``F.conv_transpose2d`` for x of the type of W; ``rest`` is its output padding."""
    if not _packs(w):
        return F.conv_transpose2d(x, w, b, stride, pad, rest)
    how = pad, rest, stride, ONE, 1
    packed = cached_per_weight(
        w,
        "transposed convolution",
        lambda: LIBRARY._reorder_convolution_transpose_weight(w, *how, x.shape),
    )
    run = LIBRARY._convolution_transpose_pointwise.default
    result: Tensor = run(x, packed, b, *how, "none", [], "")
    return result
