"""Finite differences in double precision: what a method's gradient is compared with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.api import Context


def exact(context: Context) -> None:
    """Everything in double precision from now on."""
    backbone = context.backbone
    for module in backbone.modules():
        module.double()
    backbone._conditions.clear()
    normal = context.streams.normal
    context.streams.normal = lambda *a: normal(*a).double()  # type: ignore[method-assign]


@contextmanager
def offset_by(context: Context, offset: Tensor) -> Iterator[None]:
    """Within it the trained weights are moved by this."""
    parameters = context.backbone.parameters()
    parts = offset.split([p.numel() for p in parameters])
    moved = [p.data + part.view_as(p) for p, part in zip(parameters, parts, strict=True)]
    with context.backbone.with_weights(moved):
        yield


def directional(
    context: Context, objective: Callable[[], float], gradient: Tensor, h: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """The derivative of ``objective`` along a random direction in the weights, and that direction.

    ``objective`` is called with the weights moved.
    """
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(3)).double()
    direction /= direction.norm()
    values = []
    for sign in (1, -1):
        with torch.no_grad(), offset_by(context, sign * h * direction):
            values.append(objective())
    return torch.tensor((values[0] - values[1]) / (2 * h)).double(), direction
