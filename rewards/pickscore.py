"""PickScore (Kirstain et al. 2023, arXiv 2305.01569): which picture people would pick for a prompt.

A CLIP ViT-H/14 fine-tuned on the choices of users of a web application; the score is the cosine
of the features times the model's temperature, as in the published example.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewards import register_reward
from rewards._clip import ModelReward, clip_files, cosines, load_clip

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = clip_files("yuvalkirstain/PickScore_v1", 3947)


@register_reward("pickscore")
class PickScore(ModelReward):
    """exp(temperature) times the cosine; a difference of 1 means odds of e to 1."""

    unit = "log odds"
    reference = "PickScore, Kirstain et al. 2023, arXiv 2305.01569"
    hubs, length = (WEIGHTS,), 77

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        model, tokenizer = load_clip(WEIGHTS, "pickscore", pixels.device, pixels.dtype)
        return model.logit_scale.exp() * cosines(model, tokenizer, pixels, prompts)
