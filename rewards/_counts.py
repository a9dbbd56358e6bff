"""What rewards make of a soft count N of the prompt's object, wherever N comes from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rewards import Reward, torch

if TYPE_CHECKING:
    from torch import Tensor


class Counting(Reward):
    """A reward of N."""

    differentiable = True

    def __init__(self, device: Any) -> None:
        self.device = torch.device(device)

    @abstractmethod
    def soft_count(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """N (B,), and how many the prompts ask for (B,). Raises UserError for unknown prompts."""


class Distance(Counting):
    """Minus the distance between N and the number that is asked for."""

    unit = "objects, negative"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        found, wanted = self.soft_count(images, prompts)
        return -(found - wanted).abs()


class Seen(Counting):
    """1 - exp(-N)."""

    unit = "probability"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return 1 - torch.exp(-self.soft_count(images, prompts)[0])


class Gone(Counting):
    """exp(-N)."""

    unit = "probability"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.exp(-self.soft_count(images, prompts)[0])
