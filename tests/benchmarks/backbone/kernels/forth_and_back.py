"""A layer's output and gradients, to be compared with those of another."""

from typing import Any

import torch
from torch import Tensor, nn

BF16 = torch.bfloat16


def results(module, given: Tensor, needed: bool = True, states: Any = None) -> list[Tensor]:
    """Output, and the gradients of its weighted sum."""
    given = given.clone().requires_grad_(needed)
    with torch.autocast("cpu", BF16, enabled=given.dtype == BF16):
        output = module(given, **(states or {}))
    output.backward(torch.linspace(-1, 1, output.numel()).view_as(output).to(output.dtype))
    weights = module.parameters() if isinstance(module, nn.Module) else ()
    gradients = [given.grad, *(p.grad for p in weights)]
    return [output.detach(), *(g.clone() for g in gradients if g is not None)]
