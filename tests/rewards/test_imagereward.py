"""ImageReward on tiny weights in the published format, against BLIP written out."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from synthetic import (  # noqa: F401
    IDS,
    PROMPTS,
    close,
    fixture_weights,
    linear_head,
    linear_layers,
    make,
    normalised,
    smooth,
)
from torch import Tensor
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from rewards import imagereward

VISION, TEXT = imagereward.VISION, imagereward.TEXT  # the real sizes; tests have smaller ones


def blip(state: dict[str, Tensor], pixels: Tensor, ids: Tensor) -> Tensor:
    """The score of ImageReward, written from BLIP's names."""
    state = {n: v.double() for n, v in state.items() if v.is_floating_point()}

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str, epsilon: float) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, epsilon)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (q, k, v))
        weights = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            weights = weights.masked_fill(~mask[:, None, None], -torch.inf)
        return (weights.softmax(-1) @ v).transpose(1, 2).flatten(2)

    vit, bert = "blip.visual_encoder", "blip.text_encoder"
    patches = F.conv2d(pixels, state[f"{vit}.patch_embed.proj.weight"], stride=56)
    patches = patches + state[f"{vit}.patch_embed.proj.bias"].view(-1, 1, 1)
    x = patches.flatten(2).transpose(1, 2)
    x = torch.cat([state[f"{vit}.cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + state[f"{vit}.pos_embed"]
    for i in range(2):
        block = f"{vit}.blocks.{i}"
        q, k, v = linear(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v), f"{block}.attn.proj")
        y = linear(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1")
        x = x + linear(F.gelu(y), f"{block}.mlp.fc2")
    seen = norm(x, f"{vit}.norm", 1e-6)
    y = state[f"{bert}.embeddings.word_embeddings.weight"][ids]
    y = y + state[f"{bert}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    y = norm(y, f"{bert}.embeddings.LayerNorm", 1e-12)
    for i in range(2):
        layer = f"{bert}.encoder.layer.{i}"
        for name, source, mask in (("attention", None, ids != 0), ("crossattention", seen, None)):
            part = f"{layer}.{name}"
            other = y if source is None else source
            q = linear(y, f"{part}.self.query")
            k, v = (linear(other, f"{part}.self.{n}") for n in ("key", "value"))
            z = linear(attend(q, k, v, mask), f"{part}.output.dense")
            y = norm(y + z, f"{part}.output.LayerNorm", 1e-12)
        z = linear(F.gelu(linear(y, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        y = norm(y + z, f"{layer}.output.LayerNorm", 1e-12)
    return (linear_layers(y[:, 0], state, "mlp.") - 0.16717362830052426) / 1.0333394966054072


@torch.no_grad()
def test_imagereward_is_blips_model(weights: Path) -> None:
    pictures = smooth(4, 100, 100)
    expected = blip(torch.load(weights / "ImageReward.pt"), normalised(pictures), IDS)
    assert expected.std() > 1e-3
    close(make("imagereward")(pictures, PROMPTS), expected)


def test_the_published_architecture_has_the_published_size() -> None:
    """The file of 1.79 GB has four bytes for each number."""
    with torch.device("meta"):
        vision = BlipVisionModel(BlipVisionConfig(**VISION))
        config = BlipTextConfig(**TEXT, is_decoder=True)
        text = BlipTextModel(config, add_pooling_layer=False)
        head = linear_head()
        parts = (vision, text, head, torch.nn.Linear(1024, 256), torch.nn.Linear(768, 256))
    assert sum(p.numel() for m in parts for p in m.parameters()) * 4 / 1e9 == pytest.approx(
        1.79, abs=0.005
    )
