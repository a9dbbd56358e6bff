"""Activation plans: what is kept for the backward pass, and what is computed again.

Gradients are the same under every plan; memory and time differ. The plans, fastest first:

- ``store`` keeps the activations of every sampling step that carries gradient; those of a whole
  sampling round where a single update follows it;
- ``step`` keeps the latents only and repeats the U-Net's forward pass, one sampling step at a time
  (the paper's gradient checkpointing, section 4);
- ``unet`` does that, and within a sampling step keeps only the inputs of the U-Net's blocks; the
  decoder's too. Each block's forward pass runs a third time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Plan = Literal["store", "step", "unet"]
PLANS: tuple[Plan, ...] = get_args(Plan)


def repeated(
    function: Callable[[Tensor], Tensor],
    given: Tensor,
    within: Callable[[], AbstractContextManager[Any]],
) -> Tensor:
    """``function(given)`` without a graph; the backward pass runs it again, inside ``within()``.

    Unlike torch's ``checkpoint`` it does not build a graph first that it then drops. ``function``
    must not draw random numbers. Weights that it uses get their gradient as by ``backward()``;
    ``torch.autograd.grad`` does not see them.
    """
    # Its result needs a gradient even where ``given`` does not, for the sake of the weights.
    result: Tensor = _Repeated.apply(  # type: ignore[no-untyped-call]
        function, within, given, torch.empty(0, requires_grad=True)
    )
    return result


class _Repeated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Any, within: Any, given: Tensor, _: Tensor) -> Tensor:
        ctx.function, ctx.within = function, within
        ctx.save_for_backward(given)
        output: Tensor = function(given.detach())
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (saved,) = ctx.saved_tensors
        given = saved.detach().requires_grad_(ctx.needs_input_grad[2])
        with torch.enable_grad(), ctx.within():
            output = ctx.function(given)
        output.backward(gradients)
        return None, None, given.grad, None


def _block(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """``function(*arguments)``, which runs again in the backward pass."""
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result


def recompute_blocks(module: Any, wanted: bool) -> None:
    """Whether a diffusers model keeps only the inputs of its blocks."""
    if wanted:
        module.enable_gradient_checkpointing(_block)
    else:
        module.disable_gradient_checkpointing()


def available(device: torch.device) -> float:
    """Free bytes on a CUDA device; elsewhere the memory the system can still give."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    import psutil

    return float(psutil.virtual_memory().available)
