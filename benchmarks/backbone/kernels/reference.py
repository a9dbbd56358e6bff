"""PyTorch's and diffusers' own operators in place of ours, for prices and for comparisons."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_reference: ContextVar[bool] = ContextVar("reference operators", default=False)


@contextmanager
def reference_operators() -> Iterator[None]:
    """Let models do the products that their architecture says, by PyTorch's own operators."""
    before = _reference.set(True)
    try:
        yield
    finally:
        _reference.reset(before)


def by_reference() -> bool:
    """Whether ``reference_operators`` is on. Compiled code has been decided when it was traced."""
    return not torch.compiler.is_compiling() and _reference.get()
