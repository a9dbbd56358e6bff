"""CLIPScore (Hessel et al. 2021, arXiv 2104.08718): does the picture show what the prompt says?

2.5 max(cos, 0) for the features of the picture and of "A photo depicts" and the prompt, by OpenAI's
ViT-B/32 (section 3; the authors' jmhessel/clipscore, clipscore.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewards import register_reward
from rewards._clip import ModelReward, clip_files, cosines, load_clip

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = clip_files("openai/clip-vit-base-patch32", 607)


@register_reward("clipscore")
class CLIPScore(ModelReward):
    """2.5 times the cosine, where that is positive."""

    unit = "2.5 x cosine"
    reference = "CLIPScore, Hessel et al. 2021, arXiv 2104.08718"
    hubs, length, text = (WEIGHTS,), 77, "A photo depicts {}"

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        model, tokenizer = load_clip(WEIGHTS, "clipscore", pixels.device, pixels.dtype)
        texts = [self.text.replace("{}", prompt) for prompt in prompts]
        return 2.5 * cosines(model, tokenizer, pixels, texts).clamp(min=0)
