"""Keeps NaN and infinity out of the weights: skipped and counted, and too many end the cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.api import RewardFunction, StepResult
from benchmarks.compute.ledger import Ledger
from benchmarks.distributed import exchange

#: So much may be skipped in one cell: rewards, their gradients and updates together.
LIMIT = 20


class NotFinite(RuntimeError):
    """More than ``LIMIT`` rewards, gradients and updates were NaN or infinite."""


class Guard:
    """Watches one cell; what it skips is counted by the ledger.

    A picture whose reward is not finite counts as an average one, and carries no gradient.
    """

    def __init__(self, ledger: Ledger, name: str, reward: RewardFunction) -> None:
        self.ledger, self.name, self.inner = ledger, name, reward
        self.neutral = 0.0  # the latest mean of finite rewards
        self.seen: list[str] = []  # what this step skipped
        self.prompts: list[str] = []  # what this step scored

    def reward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The reward, (B,), finite; its gradient likewise."""
        self.prompts += prompts
        values = self.inner(images, prompts)
        good = values.detach().isfinite()
        if good.any():
            self.neutral = float(values.detach()[good].mean())
        if not good.all():
            self._skip(~good, prompts, values.detach())
            values = torch.where(good, values, self.neutral)
        if images.requires_grad and values.requires_grad:

            def keep_finite(gradient: Tensor) -> Tensor:
                fine = gradient.isfinite().flatten(1).all(1)
                if fine.all():
                    return gradient
                self._skip(~fine & good, prompts, gradient.flatten(1).sum(1), "gradient of ")
                return torch.where(fine[:, None, None, None], gradient, 0.0)

            images.register_hook(keep_finite)
        return values

    def _skip(self, rows: Tensor, prompts: Sequence[str], values: Tensor, what: str = "") -> None:
        self.ledger.skipped += int(rows.sum())
        for i in rows.nonzero().flatten().tolist():
            number = float(values[i])
            self.seen.append(f"{what}reward {self.name!r} of prompt {prompts[i]!r} is {number}")

    def check(self, step: int, result: StepResult) -> None:
        """After a step that the processes have agreed on. Raises NotFinite."""
        if not math.isfinite(result.grad_norm):
            self.ledger.skipped += 1
            asked = ", ".join(repr(p) for p in dict.fromkeys(self.prompts)) or "an earlier step"
            self.seen.append(
                f"gradient norm is {result.grad_norm}, reward {self.name!r} {result.reward:.4g} on "
                f"prompts of {asked}"
            )
        if self.ledger.skipped > LIMIT:
            seen = [text for others in exchange(self.seen) for text in others]
            raise NotFinite(
                f"step {step}: {seen[-1] if seen else 'nothing new'}; "
                f"{self.ledger.skipped} skipped so far, the limit is {LIMIT}"
            )
        self.seen, self.prompts = [], []
