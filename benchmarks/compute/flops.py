"""Counts floating-point operations with ``torch.utils.flop_counter``; a multiply-add counts two."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

#: Operators that multiply matrices; one of these without a formula would be priced at zero.
DENSE = re.compile(r"(?<!a)mm|mv$|conv(?!ert)|attention|dot|linear(?!\d)|einsum")


class Untold:
    """Stands for PyTorch's tracker of modules and tracks none."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


class FlopCounter(FlopCounterMode):
    """Counts FLOPs; a matrix product without a formula is an error instead of free."""

    def __init__(self) -> None:
        super().__init__(display=False)
        registry, aten = self.flop_registry, torch.ops.aten
        registry[aten.addmm_] = registry[aten.addmm]
        # Totals alone are read. Telling modules apart takes hooks that cost half of the time, and
        # that ``autograd.grad`` refuses.
        self.mod_tracker = Untold()  # type: ignore[assignment]

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        if func_packet not in self.flop_registry and DENSE.search(str(func_packet)):
            raise RuntimeError(f"operator {func_packet} has no price: the ledger would miss it")
        return super()._count_flops(func_packet, out, args, kwargs)  # type: ignore[no-untyped-call]
