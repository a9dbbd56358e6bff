"""Objects: how many of the prompt's animal a picture shows, by the embedded counter.

Ours: the AlignProp paper optimises concept removal and counts with detector rewards that were never
released. The counter gives a density of animals and which animal it is (``vision.Counter``); the
integral of the one times the probability of the other is a soft, differentiable count N.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from benchmarks.emoji import data
from rewards import UserError, content, register_reward, torch
from rewards._check import at_least_single, check
from rewards._counts import Counting, Distance, Gone, Seen

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.emoji.vision import Counter


class _Objects(Counting):
    reference = "ours; density counting, Lempitsky and Zisserman 2010"

    @classmethod
    def content(cls) -> str:
        return content.files([content.EMBEDDED / "counter.safetensors"], content.EMBEDDED)

    def soft_count(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """N (B,), and how many the prompts ask for (B,). Raises UserError for unknown prompts."""
        check(images, prompts)
        asked = [meaning(prompt) for prompt in prompts]
        animals, numbers = (torch.tensor(v, device=self.device) for v in zip(*asked, strict=True))
        pixels = at_least_single(images.to(self.device))
        if pixels.shape[2:] != (data.SIZE, data.SIZE):
            size = (data.SIZE, data.SIZE)
            pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        return _counter(pixels.device, pixels.dtype).count(pixels, animals), numbers.to(pixels)


@register_reward("count")
class Count(_Objects, Distance):
    """Minus the distance between the soft count and the number in the prompt."""


@register_reward("presence")
class Presence(_Objects, Seen):
    """Whether the prompt's animal is there: 1 - exp(-N)."""


@register_reward("absence")
class Absence(_Objects, Gone):
    """Whether the prompt's animal is gone, the paper's concept removal: exp(-N)."""


def meaning(prompt: str) -> tuple[int, int]:
    """Which animal (index into ``data.ANIMALS``) and how many a prompt asks for."""
    known = _meanings()
    if prompt not in known:
        raise UserError(
            f"object rewards know prompts such as 'cat', 'two foxes' or 'three frogs on a blue "
            f"background', not {prompt!r}"
        )
    return known[prompt]


@lru_cache(maxsize=1)
def _meanings() -> dict[str, tuple[int, int]]:
    return {text: (animal, count) for text, animal, count in data.meanings()}


@lru_cache(maxsize=4)
def _counter(device: Any, dtype: Any) -> Counter:
    from benchmarks.emoji import vision
    from benchmarks.emoji.build import WEIGHTS

    return vision.load(vision.Counter(), WEIGHTS / "counter.safetensors").to(device, dtype)
