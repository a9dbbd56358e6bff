"""The two ways of preprocessing, against references."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import PROMPTS, fixture_weights, make, smooth  # noqa: F401
from transformers import CLIPImageProcessorPil

from rewards._clip import ALIGNPROP, MEAN, OFFICIAL, SIDE, STD


@pytest.mark.parametrize("shape", [(512, 512), (512, 768), (301, 257), (64, 64), (224, 224)])
def test_official_preprocessing_is_that_of_pil(shape: tuple[int, int]) -> None:
    """Within one and a half levels of 255 anywhere: PIL rounds to 8 bits after each direction."""
    pictures = smooth(2, *shape)
    arrays = (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()
    expected = CLIPImageProcessorPil()([Image.fromarray(a) for a in arrays], return_tensors="pt")
    difference = (OFFICIAL(pictures) - expected["pixel_values"]) * torch.tensor(STD).view(3, 1, 1)
    assert difference.abs().max() * 255 < 1.5
    assert difference.abs().mean() * 255 < 0.5


def bilinear(picture: np.ndarray, side: int) -> np.ndarray:
    """(H, H) sampled at side x side points between the four nearest pixels."""
    at = ((np.arange(side) + 0.5) * len(picture) / side - 0.5).clip(0, len(picture) - 1)
    low = np.floor(at).astype(int)
    high, share = np.minimum(low + 1, len(picture) - 1), at - low
    rows = picture[low] * (1 - share[:, None]) + picture[high] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, high] * share


def test_alignprops_preprocessing_is_bilinear_sampling() -> None:
    pictures = smooth(1, 512, 512)
    expected = np.stack([bilinear(plane.double().numpy(), SIDE) for plane in pictures[0]])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(
        (ALIGNPROP(pictures) * std + mean)[0].double(),
        torch.from_numpy(expected),
        atol=1e-5,
        rtol=0,
    )


def test_the_two_ways_differ_and_are_recorded(weights: Path) -> None:
    pictures = smooth(4, 512, 512) * 0.5 + 0.5 * torch.rand(4, 3, 512, 512)
    official, alignprop = make("aesthetic"), make("aesthetic-alignprop")
    change = (official(pictures, PROMPTS) - alignprop(pictures, PROMPTS)).abs()
    assert (change > 1e-3).all()
    assert "bicubic with antialias" in official.recorded
    assert "bilinear without antialias" in alignprop.recorded
