"""The true JPEG size, and how well ``jpeg-soft`` stands for it. ``pytest -s`` prints numbers."""

import io
from itertools import product

import card
import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor

from rewards.jpeg import (
    CHROMINANCE,
    LUMINANCE,
    JpegCompressibility,
    JpegIncompressibility,
    SoftJpegCompressibility,
    quantisers,
    soft_size,
    true_size,
)

SIDE, COUNT = 64, 120
STEP = 0.3  # pixel values per (kB per pixel value); moves pixels by about half a level of 255 (rms)
Y, X = np.mgrid[0:SIDE, 0:SIDE] / SIDE


def drawings(rng: np.random.Generator) -> Tensor:
    """Flat backgrounds with antialiased two-coloured discs; a third blurred, a third noisy."""
    pictures = []
    for i in range(COUNT):
        picture = np.broadcast_to(rng.uniform(0, 1, (3, 1, 1)), (3, SIDE, SIDE)).copy()
        for _ in range(rng.integers(1, 9)):
            cx, cy, radius = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.06, 0.2)
            softness = 20 if i % 3 == 1 else 80
            for part in (1.0, 0.5):
                inside = (radius * part - np.hypot(X - cx, Y - cy)) * softness + 0.5
                colour = rng.uniform(0, 1, (3, 1, 1))
                picture += np.clip(inside, 0, 1) * (colour - picture)
        noise = rng.uniform(0.002, 0.06) if i % 3 == 2 else 0
        pictures.append(picture + rng.normal(0, 1, picture.shape) * noise)
    return quantised(pictures)


def spectra(rng: np.random.Generator) -> Tensor:
    """1/f^a spectra with correlated channels; a third with an edge, a third with noise."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None])
    frequency[0, 0] = 1
    opponents = np.array([[1, 0.3, 0.1], [1, -0.1, 0.2], [1, -0.2, -0.3]])
    pictures = []
    for i in range(COUNT):
        spectrum = np.fft.fft2(rng.normal(size=(3, SIDE, SIDE))) / frequency ** rng.uniform(0.8, 2)
        field = np.fft.ifft2(spectrum).real
        field = np.tensordot(opponents, field / field.std((1, 2), keepdims=True), 1)
        picture = 0.5 + field * rng.uniform(0.04, 0.2)
        if i % 3 == 1:
            picture += rng.uniform(-0.3, 0.3, (3, 1, 1)) * (X + rng.uniform(-1, 1) * Y > 0.5)
        if i % 3 == 2:
            picture += rng.normal(0, rng.uniform(0.005, 0.04), picture.shape)
        pictures.append(picture)
    return quantised(pictures)


def generated(rng: np.random.Generator) -> Tensor:
    return card.pictures()


def photograph(rng: np.random.Generator) -> Tensor:
    """Crops of the photograph in matplotlib, at half size to be rid of its own JPEG."""
    path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    return quantised(crops(np.asarray(Image.open(path).reduce(2)), SIDE // 2))


def crops(picture: np.ndarray, stride: int) -> list[np.ndarray]:
    height, width = picture.shape[:2]
    corners = product(range(0, height - SIDE + 1, stride), range(0, width - SIDE + 1, stride))
    return [picture[y : y + SIDE, x : x + SIDE].transpose(2, 0, 1) / 255 for y, x in corners]


def quantised(pictures: list[np.ndarray]) -> Tensor:
    return torch.tensor((np.stack(pictures).clip(0, 1) * 255).round() / 255, dtype=torch.float32)


@pytest.fixture(params=[drawings, spectra, generated, photograph], ids=lambda draw: draw.__name__)
def pictures(request: pytest.FixtureRequest) -> Tensor:
    return request.param(np.random.default_rng(0))


def test_soft_size_ranks_like_the_true_one(pictures: Tensor) -> None:
    true, soft = true_size(pictures), soft_size(pictures)
    rank = spearmanr(true, soft).statistic
    error = (soft / true - 1).abs().median().item()
    print(f"\nSpearman {rank:.4f}, median relative error {error:.3f}")
    assert rank >= 0.97
    assert error <= 0.1


def test_a_gradient_step_shrinks_the_true_file(pictures: Tensor) -> None:
    """Plain gradient ascent with a step that is the same for every picture."""
    x = pictures.requires_grad_()
    (gradient,) = torch.autograd.grad(soft_size(x).sum(), x)
    assert gradient.isfinite().all()
    change = true_size((x - STEP * gradient).clamp(0, 1)) / true_size(x) - 1
    share = (change < 0).float().mean().item()
    print(f"\n{share:.3f} of the files shrink, mean change {change.mean().item():+.4f}")
    assert share >= 0.95
    assert change.mean() < -0.005


@pytest.mark.parametrize("shape", [(9, 13), (64, 64), (17, 40), (1, 1)])
def test_gradient_agrees_with_finite_differences(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, *shape, dtype=torch.float64, generator=generator).requires_grad_()
    direction = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad(soft_size(x).sum(), x)
    h = 1e-6
    numeric = (soft_size(x + h * direction) - soft_size(x - h * direction)).sum() / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-7)


def test_rewards_are_the_size_of_the_file_pillow_writes(pictures: Tensor) -> None:
    buffer = io.BytesIO()
    pixels = (pictures[0] * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    picture.save(buffer, format="JPEG", quality=95)
    kilobytes = len(buffer.getvalue()) / 1000
    prompts = ["a cat"]
    assert JpegCompressibility("cpu")(pictures[:1], prompts).item() == pytest.approx(-kilobytes)
    assert JpegIncompressibility("cpu")(pictures[:1], prompts).item() == pytest.approx(kilobytes)
    tables = Image.open(buffer).quantization  # Pillow gives them in raster order
    assert quantisers(LUMINANCE).flatten().tolist() == tables[0]
    assert quantisers(CHROMINANCE).flatten().tolist() == tables[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_and_batch(dtype: torch.dtype) -> None:
    x = torch.rand(3, 3, 20, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    reward = SoftJpegCompressibility("cpu")(x, ["a"] * 3)
    assert reward.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    single = torch.cat([SoftJpegCompressibility("cpu")(x[i : i + 1], ["a"]) for i in range(3)])
    torch.testing.assert_close(reward, single)
