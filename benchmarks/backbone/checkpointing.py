"""Activation checkpointing: what is kept for the backward pass, and what is computed again.

Gradients are the same whatever is kept; memory and time differ. The choices, fastest first:

- ``all`` keeps the activations of every sampling step that carries gradient; those of a whole
  sampling round where a single update follows it;
- ``latents`` keeps the latents only and repeats the denoiser's forward pass, one sampling step at a
  time (the paper's gradient checkpointing, section 4);
- ``blocks`` does that, and within a sampling step keeps only the inputs of the denoiser's blocks;
  the decoder's too. Each block's forward pass runs a third time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.api import Keep

KEEPS: tuple[Keep, ...] = get_args(Keep)


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


def recompute_blocks(module: nn.Module, wanted: bool) -> bool:
    """Let a diffusers model keep only the inputs of its blocks, or all again; whether it now does.

    Other modules always keep all.
    """
    able: Any = module if hasattr(module, "enable_gradient_checkpointing") else None
    if able is None:
        return False
    if wanted:
        able.enable_gradient_checkpointing(_block)
    else:
        able.disable_gradient_checkpointing()
    return wanted


def available(device: torch.device) -> float:
    """Free bytes on a CUDA device; elsewhere the memory the system can still give."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    import psutil

    return float(psutil.virtual_memory().available)
