"""The optimizer all methods use: AdamW on the trained weights, with gradient clipping."""

from __future__ import annotations

from typing import Any

from benchmarks.api import AdamW
from benchmarks.distributed import reduce_gradients
from benchmarks.lazy import torch


class Optimizer:
    """Clips, steps, clears; reports the norm before clipping."""

    def __init__(self, config: AdamW, parameters: list[torch.nn.Parameter]) -> None:
        self.clip, self.parameters = config.clip, parameters
        self.adamw = torch.optim.AdamW(
            parameters,
            lr=config.lr,
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
        )

    def step(self) -> float:
        """One update from the accumulated gradients; returns their norm.

        Without an update if that is not finite.
        """
        reduce_gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        if norm.isfinite():
            self.adamw.step()
        self.adamw.zero_grad()
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        """For resuming."""
        return self.adamw.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.adamw.load_state_dict(state)
