"""Model rewards on tiny weights in the published formats, against independent references."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from synthetic import (  # noqa: F401
    IDS,
    NAMES,
    PROMPTS,
    close,
    fixture_weights,
    linear_layers,
    make,
    normalised,
    smooth,
)
from torch import Tensor
from transformers import CLIPModel


def double(path: Path) -> CLIPModel:
    return CLIPModel.from_pretrained(path).double().eval()


def clip_cosine(path: Path, pixels: Tensor, ids: Tensor) -> Tensor:
    with torch.no_grad():
        output = double(path)(pixel_values=pixels, input_ids=ids, attention_mask=ids != 0)
    return (output.image_embeds * output.text_embeds).sum(1)


def test_aesthetic(weights: Path) -> None:
    pictures = smooth(4, 100, 100)
    with torch.no_grad():
        output = double(weights / "clip-vit-large-patch14").get_image_features(normalised(pictures))
    state = torch.load(weights / "sac+logos+ava1-l14-linearMSE.pth")
    features = output.pooler_output / output.pooler_output.norm(dim=1, keepdim=True)
    expected = linear_layers(features, state)
    assert expected.std() > 1e-3
    close(make("aesthetic")(pictures, PROMPTS), expected)


def test_pickscore(weights: Path) -> None:
    pictures = smooth(4, 100, 100)
    cosine = clip_cosine(weights / "PickScore_v1", normalised(pictures), IDS)
    close(make("pickscore")(pictures, PROMPTS), np.exp(2.0) * cosine)


def test_clipscore(weights: Path) -> None:
    pictures = smooth(8, 100, 100)
    ids = torch.tensor([[1, 6, 6, 6, 2, 3, 7], [1, 6, 6, 6, 5, 4, 7]] * 4)  # A photo depicts ...
    cosine = clip_cosine(weights / "clip-vit-base-patch32", normalised(pictures), ids)
    assert cosine.min() < 0 < cosine.max()
    words = ["a cat", "two dog"] * 4
    # The tokenizer here does not know "A photo depicts", but its <unk> has the same length.
    close(make("clipscore")(pictures, words), 2.5 * cosine.clamp(min=0))


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_keeps_the_ranking(name: str, weights: Path) -> None:
    """Pictures and weights in bfloat16; the networks here are narrower, so noisier, than real."""
    pictures = smooth(12, 64, 64) * torch.linspace(0.1, 1, 12).view(12, 1, 1, 1)
    prompts = ["dog two a"] * 12
    full = make(name)(pictures, prompts)
    half = make(name, dtype=torch.bfloat16)(pictures.bfloat16(), prompts)
    assert half.dtype == torch.float32
    assert spearmanr(full, half).statistic > 0.95
