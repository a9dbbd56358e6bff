"""What every reward demands of its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rewards import torch

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-3  # how far a pixel may lie outside [0, 1]: decoders and interpolation round


def check(images: Tensor, prompts: Sequence[str]) -> None:
    """Raise ``ValueError`` unless ``images`` is (B, 3, H, W), finite, in [0, 1], with B prompts."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (B, 3, H, W), not {tuple(images.shape)}")
    if images.numel() == 0:
        raise ValueError(f"images must not be empty, but the shape is {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point in [0, 1], not {images.dtype}")
    if len(prompts) != len(images):
        raise ValueError(f"{len(images)} images need as many prompts, not {len(prompts)}")
    low, high = (bound.item() for bound in images.detach().aminmax())  # NaN propagates
    if not (-float("inf") < low and high < float("inf")):
        raise ValueError("images must be finite, but hold NaN or infinity")
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise ValueError(f"images must lie in [0, 1], not [{low:.4g}, {high:.4g}]")


def eight_bit(images: Tensor) -> Any:
    """(B, 3, H, W) in [0, 1] as Pillow takes it: a uint8 array (B, H, W, 3), rounded."""
    pixels = (images.detach().float().clamp(0, 1) * 255).round().byte()
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def at_least_single(values: Tensor) -> Tensor:
    """Half precision to float32: rewards lie close together. float64 stays float64."""
    return values if values.dtype == torch.float64 else values.float()
