"""Human Preference Score v2 and v2.1 (Wu et al. 2023, arXiv 2306.09341).

The cosine of the features of picture and prompt by a CLIP ViT-H/14 fine-tuned on people's choices.
The files are those published in the hub repository xswu/HPSv2: a ``state_dict`` with open_clip's
names, which are changed to those of transformers, so that no other package is needed. v2 and v2.1
are different models; their values cannot be compared.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rewards import UserError, register_reward
from rewards._clip import ALIGNPROP, ModelReward, cosines, load_tokenizer
from rewards._weights import TOKENIZER, Hub, build, read_pickle, rename

if TYPE_CHECKING:
    from torch import Tensor

#: The base model's tokenizer. It is CLIP's own; v2's package for it does not carry its vocabulary.
WORDS = Hub("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", TOKENIZER, 2)
#: open_clip's ViT-H-14.
VISION = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "hidden_act": "gelu",
}
TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
WIDTH = 1024  # of the common features
#: From open_clip's names to those of transformers' CLIPModel.
NAMES = {
    r"^(transformer|token_embedding|positional_embedding|ln_final)": r"text_model.\1",
    r"^visual\.proj$": "visual_projection.weight",
    r"^text_projection$": "text_projection.weight",
    r"^visual\.": "vision_model.",
    r"\.transformer\.resblocks\.": ".encoder.layers.",
    r"\.attn\.out_proj\.": ".self_attn.out_proj.",
    r"\.ln_(\d)\.": r".layer_norm\1.",
    r"\.mlp\.c_fc\.": ".mlp.fc1.",
    r"\.mlp\.c_proj\.": ".mlp.fc2.",
    r"\.ln_final\.": ".final_layer_norm.",
    r"\.ln_pre\.": ".pre_layrnorm.",
    r"\.ln_post\.": ".post_layernorm.",
    r"\.conv1\.": ".embeddings.patch_embedding.",
    r"\.class_embedding$": ".embeddings.class_embedding",
    r"\.token_embedding\.": ".embeddings.token_embedding.",
    r"\.positional_embedding$": ".embeddings.position_embedding.weight",
}


@register_reward("hpsv2")
class HPSv2(ModelReward):
    """How much people would prefer the picture for the prompt."""

    unit = "cosine"
    reference = "HPSv2, Wu et al. 2023, arXiv 2306.09341"
    weights: ClassVar[Hub] = Hub("xswu/HPSv2", ("HPS_v2_compressed.pt",), 1972)
    hubs, length = (weights, WORDS), 77

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        model, tokenizer = _load(self.weights, pixels.device, pixels.dtype)
        return cosines(model, tokenizer, pixels, prompts)


@register_reward("hpsv2.1")
class HPSv21(HPSv2):
    """The same by the later checkpoint; not comparable with hpsv2."""

    weights = Hub("xswu/HPSv2", ("HPS_v2.1_compressed.pt",), 1972)
    hubs = (weights, WORDS)


@register_reward("hpsv2-alignprop")
class HPSv2AlignProp(HPSv2):
    """hpsv2 with pictures resized as the official AlignProp repository did."""

    preprocessing = ALIGNPROP


@lru_cache(maxsize=4)
def _load(weights: Hub, device: Any, dtype: Any) -> tuple[Any, Any]:
    """The frozen CLIPModel and its tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    path = weights.folder("hpsv2") / weights.files[0]
    tokenizer = load_tokenizer(WORDS.folder("hpsv2"))
    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=WIDTH)
    model = build(CLIPModel, config, _converted(path), path)
    return model.to(device, dtype), tokenizer


def _converted(path: Path) -> dict[str, Tensor]:
    """The published file with the names and the layout of CLIPModel."""
    checkpoint = read_pickle(path)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: has no 'state_dict'; is it the published HPSv2 file?")
    state = {}
    for name, value in rename(checkpoint["state_dict"], NAMES).items():
        if name.endswith("projection.weight"):
            state[name] = value.T.contiguous()
        elif ".attn.in_proj_" in name:  # queries, keys and values on top of one another
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                state[name.replace(".attn.in_proj_", f".self_attn.{part}_proj.")] = rows.clone()
        else:
            state[name] = value
    return state
