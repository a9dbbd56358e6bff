"""ImageReward (Xu et al. 2023, arXiv 2304.05977): how people rate a picture for a prompt.

BLIP-large reads the prompt while looking at the picture; a multi-layer perceptron without
activations turns the first token into a number, which is normalised. The file is the published
``ImageReward.pt``, whose names (of Salesforce's BLIP) are changed to those of transformers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rewards import register_reward
from rewards._check import at_least_single
from rewards._clip import ModelReward, load_tokenizer
from rewards._head import Layers, apply, head
from rewards._weights import TOKENIZER, Hub, build, read_pickle, rename

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = Hub("THUDM/ImageReward", ("ImageReward.pt",), 1791)
WORDS = Hub("google-bert/bert-base-uncased", TOKENIZER, 1)
LENGTH = 35  # tokens; THUDM/ImageReward, ImageReward.py, score
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # same file, __init__
#: BLIP-large (ViT-L/16) and its med_config.json, with ImageReward's 30,524 words.
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 16,
    "image_size": 224,
    "layer_norm_eps": 1e-6,
}
TEXT = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "encoder_hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
}
#: From BLIP's names to those of transformers' BlipVisionModel and BlipTextModel.
NAMES = {
    r"^blip\.visual_encoder\.": "vision.",
    r"^blip\.text_encoder\.": "text.",
    r"\.cls_token$": ".embeddings.class_embedding",
    r"\.pos_embed$": ".embeddings.position_embedding",
    r"\.patch_embed\.proj\.": ".embeddings.patch_embedding.",
    r"\.blocks\.": ".encoder.layers.",
    r"\.attn\.proj\.": ".self_attn.projection.",
    r"\.attn\.qkv\.": ".self_attn.qkv.",
    r"\.norm(\d)\.": r".layer_norm\1.",
    r"\.norm\.": ".post_layernorm.",
}
#: Parts of the published file that the score does not use.
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "text.embeddings.position_ids")


@register_reward("imagereward")
class ImageReward(ModelReward):
    """The predicted rating; over its training pictures the mean is 0, the deviation 1."""

    unit = "standard deviations"
    reference = "ImageReward, Xu et al. 2023, arXiv 2304.05977"
    standardised = True
    hubs, length = (WEIGHTS, WORDS), LENGTH

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        vision, text, layers, tokenizer = _load(pixels.device, pixels.dtype)
        tokens = tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=LENGTH,
            return_tensors="pt",
        ).to(pixels.device)
        seen = vision(pixel_values=pixels).last_hidden_state
        values = text(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=seen,
        ).last_hidden_state[:, 0]
        return (apply(layers, at_least_single(values)) - MEAN) / STD


@lru_cache(maxsize=2)
def _load(device: Any, dtype: Any) -> tuple[Any, Any, Layers, Any]:
    """The frozen models of pictures and of text, the head, and the tokenizer."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    path = WEIGHTS.folder("imagereward") / WEIGHTS.files[0]
    tokenizer = load_tokenizer(WORDS.folder("imagereward"))
    parts: dict[str, dict[str, Tensor]] = {"vision": {}, "text": {}, "mlp": {}}
    for name, value in rename(read_pickle(path), NAMES).items():
        part, _, rest = name.partition(".")
        if part not in parts:
            part, rest = "mlp", name  # which refuses it
        if not name.startswith(UNUSED):
            parts[part][rest] = value
    vision = build(BlipVisionModel, BlipVisionConfig(**VISION), parts["vision"], path)
    # is_decoder is what gives the model its cross-attention; it still reads in both directions.
    config = BlipTextConfig(**TEXT, is_decoder=True)
    text = build(BlipTextModel, config, parts["text"], path, add_pooling_layer=False)
    layers = head(parts["mlp"], path)
    return vision.to(device, dtype), text.to(device, dtype), layers, tokenizer
