"""JPEG file size: the true one, and a differentiable estimate of it.

``jpeg`` is DDPO's compressibility (arXiv 2305.13301): minus the kB (1000 bytes) of the picture
saved by Pillow at quality 95, 4:2:0 chroma. ``jpeg-soft`` replaces rounding and Huffman coding by
a smooth price in bits for a coefficient c with quantiser step q:

    log2(1 + (c / (WIDTH q))^4) / 2

flat near zero, where a coefficient is rounded away. The first one of a block (DC) is priced by
its difference from the previous block's.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from rewards import Reward, register_reward, torch
from rewards._check import at_least_single, check, eight_bit

if TYPE_CHECKING:
    from torch import Tensor

QUALITY = 95
HEADER_BYTES = 623  # markers and tables of a colour file written by libjpeg
WIDTH = 0.7  # narrower ranks pictures better, wider gives the gradient a longer reach
# Weights (bits): least squares of the relative error over drawings and photographs.
BLOCK_BITS, DC_BITS, AC_BITS = 7.8, 1.12, 1.42
# ITU-T T.81 Annex K, tables K.1 and K.2: the quantisers at quality 50.
LUMINANCE = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29
51 87 80 62 18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101
72 92 95 98 112 100 103 99"""
CHROMINANCE = "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66"
CHROMINANCE += " 99" * 38


def quantisers(table: str, quality: int = QUALITY) -> Tensor:
    """An 8 x 8 table scaled to ``quality`` as libjpeg's ``jpeg_quality_scaling`` does."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = torch.tensor([int(word) for word in table.split()]).reshape(8, 8)
    return ((steps * scale + 50) // 100).clamp(1, 255)


def true_size(images: Tensor) -> Tensor:
    """The size in kB of each of ``images`` (B, 3, H, W) as a JPEG file: (B,), no gradient."""
    sizes = []
    for picture in eight_bit(images):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="JPEG", quality=QUALITY)
        sizes.append(buffer.tell() / 1000)
    return torch.tensor(sizes, dtype=torch.float32, device=images.device)


def soft_size(images: Tensor) -> Tensor:
    """A differentiable estimate of ``true_size``: (B,) in kB; float64 stays float64."""
    x = 255 * at_least_single(images)
    red, green, blue = x.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = torch.stack([(blue - luma) / 1.772, (red - luma) / 1.402], 1)
    luma, chroma = _pad(luma[:, None] - 128, 8), torch.nn.functional.avg_pool2d(_pad(chroma, 16), 2)
    bits = x.new_zeros(len(x))
    for plane, table in ((luma, LUMINANCE), (chroma, CHROMINANCE)):
        levels = (_dct(plane) / quantisers(table).to(x)).flatten(3)  # (B, C, blocks, 64)
        dc = torch.diff(levels[..., 0], prepend=torch.zeros_like(levels[..., :1, 0]))
        price = DC_BITS * _price(dc) + AC_BITS * _price(levels[..., 1:])
        bits = bits + BLOCK_BITS * dc[0].numel() + price
    return (HEADER_BYTES + bits / 8) / 1000


def _price(levels: Tensor) -> Tensor:
    """The bits of ``levels`` (B, ...), before weighting: (B,)."""
    return torch.log1p((levels / WIDTH) ** 4).flatten(1).sum(1) / (2 * math.log(2))


def _pad(plane: Tensor, multiple: int) -> Tensor:
    height, width = plane.shape[-2:]
    return torch.nn.functional.pad(
        plane, (0, -width % multiple, 0, -height % multiple), mode="replicate"
    )


def _dct(plane: Tensor) -> Tensor:
    """Orthonormal DCT-II of the 8 x 8 blocks, in raster order: (B, C, blocks, 8, 8)."""
    k = torch.arange(8, dtype=plane.dtype, device=plane.device)
    basis = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    blocks = plane.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)
    return basis @ blocks.flatten(2, 3) @ basis.T


@register_reward("jpeg")
class JpegCompressibility(Reward):
    """Minus the true file size in kB."""

    unit = "kB, negative"
    reference = "Black et al. 2023, arXiv 2305.13301; PIL quality 95"
    differentiable = False
    stand_in = "jpeg-soft"

    def __init__(self, device: Any) -> None:
        self.device = torch.device(device)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check(images, prompts)
        return -true_size(images.to(self.device))


@register_reward("jpeg-incompressibility")
class JpegIncompressibility(JpegCompressibility):
    """The true file size in kB."""

    unit = "kB"
    stand_in = None

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return -super().__call__(images, prompts)


@register_reward("jpeg-soft")
class SoftJpegCompressibility(JpegCompressibility):
    """Minus the estimated file size in kB, with a gradient."""

    reference = "ours: the codec of `jpeg` with a smooth price per coefficient"
    differentiable = True
    stand_in = None

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check(images, prompts)
        return -soft_size(images.to(self.device))
