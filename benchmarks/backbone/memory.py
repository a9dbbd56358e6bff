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
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Plan = Literal["store", "step", "unet"]
PLANS: tuple[Plan, ...] = get_args(Plan)


def recomputed(
    function: Callable[..., Tensor],
    *arguments: Any,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """``function(*arguments)``, which runs again in the backward pass, inside ``within()``.

    ``function`` must not draw random numbers.
    """
    result: Tensor = checkpoint(
        function,
        *arguments,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), within()),
    )
    return result


def recompute_blocks(module: Any, wanted: bool) -> None:
    """Whether a diffusers model keeps only the inputs of its blocks."""
    if wanted:
        module.enable_gradient_checkpointing(recomputed)
    else:
        module.disable_gradient_checkpointing()


def available(device: torch.device) -> float:
    """Free bytes on a CUDA device; elsewhere the memory the system can still give."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    import psutil

    return float(psutil.virtual_memory().available)
