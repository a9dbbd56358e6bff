"""Keeps NaN and infinity out of the weights, and ends a cell that cannot learn anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.api import RewardFunction, Scale, StepResult
from benchmarks.compute.ledger import Ledger
from benchmarks.distributed import exchange

#: So much may be skipped in one cell: rewards, their gradients and updates together.
LIMIT = 20


#: A cell whose first updates all say nothing about the reward is ended.
FIRST = 5


class NotFinite(RuntimeError):
    """More than ``LIMIT`` rewards, gradients and updates were NaN or infinite."""


class NoSignal(RuntimeError):
    """The first ``FIRST`` updates did not depend on the reward."""


class Guard:
    """Watches one cell; what it skips is counted by the ledger.

    A picture whose reward is not finite counts as an average one of the base model, the mean of
    ``scale``, and carries no gradient. So results do not depend on the micro-batch it stood in.
    """

    def __init__(
        self, ledger: Ledger, name: str, reward: RewardFunction, scale: Callable[[], Scale]
    ) -> None:
        self.ledger, self.name, self.inner, self.scale = ledger, name, reward, scale
        self.mute = 0  # updates without a signal, as long as there has been no other
        self.skipped: list[str] = []  # what this step skipped
        self.prompts: list[str] = []  # what this step scored

    def reward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The reward, (B,), finite; its gradient likewise."""
        self.prompts += prompts
        values = self.inner(images, prompts)
        good = values.detach().isfinite()
        if not good.all():
            self._skip(~good, prompts, values.detach())
            values = torch.where(good, values, self.scale().mean)
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
            self.skipped.append(f"{what}reward {self.name!r} of prompt {prompts[i]!r} is {number}")

    def check(self, step: int, result: StepResult) -> None:
        """After a step that the processes have agreed on. Raises NotFinite and NoSignal."""
        if not math.isfinite(result.grad_norm):
            self.ledger.skipped += 1
            asked = ", ".join(repr(p) for p in dict.fromkeys(self.prompts)) or "an earlier step"
            self.skipped.append(
                f"gradient norm is {result.grad_norm}, reward {self.name!r} {result.reward:.4g} on "
                f"prompts of {asked}"
            )
        if self.ledger.skipped > LIMIT:
            skipped = [text for others in exchange(self.skipped) for text in others]
            raise NotFinite(
                f"step {step}: {skipped[-1] if skipped else 'nothing new'}; "
                f"{self.ledger.skipped} skipped so far, the limit is {LIMIT}"
            )
        self.skipped, self.prompts = [], []
        mute = result.grad_norm == 0 or not result.informative
        self.mute = self.mute + 1 if mute and step == self.mute else -1
        if self.mute == FIRST:
            what = "gradients are exactly zero" if result.grad_norm == 0 else "rewards are alike"
            raise NoSignal(
                f"nothing is learnt from reward {self.name!r}: in the first {FIRST} updates its "
                f"{what} (reward {result.reward:.4g}); look at the method's options that have the "
                "reward's unit, or take another reward"
            )
