"""LAION's aesthetic predictor: how much people like a picture, on a scale of about 1 to 10.

The normalised picture features of CLIP ViT-L/14 through a multi-layer perceptron without
activations, fitted to people's ratings (Schuhmann 2022, christophschuhmann/improved-aesthetic-
predictor, ``sac+logos+ava1-l14-linearMSE.pth``). The prompt is not looked at.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from rewards import register_reward
from rewards._clip import ALIGNPROP, ModelReward, clip_files, image_features, load_clip
from rewards._head import Layers, apply, head
from rewards._weights import Hub, read_pickle

if TYPE_CHECKING:
    from torch import Tensor

CLIP = clip_files("openai/clip-vit-large-patch14", 1713)
#: A copy on the hub of the file that the author publishes on GitHub.
HEAD = Hub("camenduru/improved-aesthetic-predictor", ("sac+logos+ava1-l14-linearMSE.pth",), 4)


@register_reward("aesthetic")
class Aesthetic(ModelReward):
    """The predicted rating of a picture, whatever the prompt."""

    unit = "rating, 1 to 10"
    reference = "Schuhmann 2022, LAION aesthetic predictor V2"
    hubs = (HEAD, CLIP)

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        model, _ = load_clip(CLIP, "aesthetic", pixels.device, pixels.dtype)
        return apply(_head(), image_features(model, pixels))


@register_reward("aesthetic-alignprop")
class AestheticAlignProp(Aesthetic):
    """aesthetic, with pictures resized as the official AlignProp repository did."""

    preprocessing = ALIGNPROP


@lru_cache(maxsize=1)
def _head() -> Layers:
    path = HEAD.folder("aesthetic") / HEAD.files[0]
    return head(read_pickle(path), path)
