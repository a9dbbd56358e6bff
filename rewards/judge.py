"""The judge of the embedded world: does a picture show what was asked for? Never optimised.

Its network (``benchmarks/emoji/vision.py``) was trained on drawn scenes for evaluation alone, so no
method climbs it, and what it says of a picture is not bent by training. It guards verdicts: a run
counts as long as the judge still recognises its pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from benchmarks.emoji import data
from rewards import Reward, content, register_reward, torch
from rewards._check import at_least_single, check
from rewards.objects import meaning

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.emoji.vision import Judge as Network


@register_reward("judge")
class Judge(Reward):
    """Log-probability of the prompt's animal and of its number, by the judge."""

    unit, reference = "log-probability", "ours; a classifier of drawn scenes"
    differentiable, optimisable = False, False

    def __init__(self, device: Any = "cpu") -> None:
        self.device = device

    @classmethod
    def content(cls) -> str:
        return content.files([content.EMBEDDED / "judge.safetensors"], content.EMBEDDED)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,), at most 0. Raises UserError for prompts that are no captions of the world."""
        check(images, prompts)
        animals, numbers = zip(*map(meaning, prompts), strict=True)
        pixels = at_least_single(images.to(self.device))
        if pixels.shape[2:] != (data.SIZE, data.SIZE):
            size = (data.SIZE, data.SIZE)
            pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        which, many = _network(pixels.device, pixels.dtype)(pixels)
        rows = torch.arange(len(images))
        of_animal = which.log_softmax(1)[rows, list(animals)]
        return of_animal + many.log_softmax(1)[rows, [number - 1 for number in numbers]]


@lru_cache(maxsize=4)
def _network(device: Any, dtype: Any) -> Network:
    from benchmarks.emoji import vision
    from benchmarks.emoji.build import WEIGHTS

    return vision.load(vision.Judge(), WEIGHTS / "judge.safetensors").to(device, dtype)
