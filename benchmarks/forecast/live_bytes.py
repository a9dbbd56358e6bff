"""How many bytes of tensors live at once: counts storages as operators make and drop them.

Works alike on the meta device, where nothing is allocated, and on real tensors.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten


class Live(TorchDispatchMode):
    """Counts storages made while it is active: bytes ``now``, at the ``peak``, and by operator.

    What a meta tensor holds cannot be known; asked for its values, it gives ones.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peaks: Counter[Any] = Counter()  # most bytes alive right after each operator
        self._known: dict[int, Any] = {}  # storages that live, by address of their handle

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors((args, tuple(kwargs.values()))))
        for tensor in given:  # made before: not ours
            self._meet(tensor, 0)
        if func is _aten._local_scalar_dense.default and given[0].is_meta:
            return torch.ones((), dtype=given[0].dtype).item()
        to = kwargs.get("device")
        if func is _aten._to_copy.default and given[0].is_meta and to and to.type != "meta":
            kind = kwargs.get("dtype") or given[0].dtype
            result = torch.ones(given[0].shape, dtype=kind, device=to)
        else:
            result = func(*args, **kwargs)
        for tensor in _tensors((result,)):
            self._meet(tensor, tensor.untyped_storage().nbytes())
        self.peaks[func] = max(self.peaks[func], self.now)
        return result

    @property
    def peak(self) -> int:
        """Most bytes alive at once since ``peaks`` was empty."""
        return max(self.peaks.values(), default=self.now)

    def _meet(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return

        def forget(_: Any) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, forget)
        self.now += size


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:  # torch's own way through nested arguments takes longer than the operators
        if isinstance(value, Tensor):
            if not value.is_mkldnn:  # weights in another order: their bytes cannot be seen
                yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
