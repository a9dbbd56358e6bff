"""What stays the same from one sampling step to the next is computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Found = TypeVar("Found")

_kept: dict[Any, Any] | None = None


@contextmanager
def one_trajectory() -> Iterator[None]:
    """Inside, the text and the weights stay as they are."""
    global _kept
    before, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = before


def keeps() -> bool:
    """Whether ``kept`` keeps anything here: along a trajectory, without gradient."""
    return _kept is not None and not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def kept(key: Any, make: Callable[[], Found]) -> Found:
    """What ``make`` made when the trajectory first asked for ``key``."""
    if _kept is None or not keeps():
        return make()
    if key not in _kept:
        _kept[key] = make()
    found: Found = _kept[key]
    return found
