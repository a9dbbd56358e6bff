"""Random streams named by (seed, purpose, step, global sample index).

No draw depends on any other, so results do not depend on the batch split, on when evaluation
happens, or on whether the run was resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class Streams:
    """All the randomness of one cell."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def generator(self, purpose: str, step: int, index: int = 0) -> torch.Generator:
        """A CPU generator for one named stream."""
        name = f"{self.seed}/{purpose}/{step}/{index}".encode()
        digest = hashlib.sha256(name).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def normal(
        self, purpose: str, step: int, indices: Iterable[int], shape: Sequence[int]
    ) -> Tensor:
        """Standard normal (B, *shape), float32 on the CPU, one stream per sample index."""
        return torch.stack(
            [torch.randn(*shape, generator=self.generator(purpose, step, i)) for i in indices]
        )

    def integer(self, purpose: str, step: int, low: int, high: int, index: int = 0) -> int:
        """A uniform integer in [low, high)."""
        return int(torch.randint(low, high, (), generator=self.generator(purpose, step, index)))

    def permutation(self, purpose: str, step: int, size: int, index: int = 0) -> list[int]:
        """A uniform permutation of range(size)."""
        order = torch.randperm(size, generator=self.generator(purpose, step, index))
        return [int(i) for i in order]
