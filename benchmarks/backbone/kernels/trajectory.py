"""What stays the same from one sampling step to the next is computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

Found = TypeVar("Found")

#: By what is asked for and what it is computed from; with the latter, so that it lives as long.
_cache: dict[Any, tuple[Tensor, Any]] | None = None


@contextmanager
def one_trajectory() -> Iterator[None]:
    """Promise that the weights stay as they are until the end."""
    global _cache
    before, _cache = _cache, {}
    try:
        yield
    finally:
        _cache = before


def caching() -> bool:
    """Whether ``cached_per_trajectory`` caches here: along a trajectory, without gradient."""
    return _cache is not None and not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def cached_per_trajectory(what: Hashable, source: Tensor, make: Callable[[], Found]) -> Found:
    """What ``make`` made when this trajectory first asked for ``what`` of the tensor ``source``.

    Another tensor, such as another text, is another entry, and so is the same one written to. The
    weights that ``make`` uses are taken to stay as they are.
    """
    if _cache is None or not caching():
        return make()
    key = what, id(source), source._version
    if key not in _cache:
        _cache[key] = source, make()
    found: Found = _cache[key][1]
    return found
