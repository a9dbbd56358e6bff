"""A base model in half precision with LoRA, latents and gradients in float32."""

from pathlib import Path

import pytest
import torch

from benchmarks.backbone import load
from benchmarks.backbone.fp16_range import GradientRange
from benchmarks.compute.ledger import Ledger
from benchmarks.streams import Streams


def gradient(folder: Path, precision: str, scale: float) -> torch.Tensor:
    """Of ``scale`` times a sum of pixels, through the decoder and two sampling steps of three."""
    model = load(str(folder), Ledger(), precision, keep="latents")
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    noise = Streams(0).normal("noise", 0, range(2), model.latent_shape)
    trajectory = model.sample(
        model.sampler(3),
        ["cat", "dog"],
        noise,
        guidance=2.0,
        gradient=[False, True, True],
    )
    images = model.decode(trajectory.final)
    assert images.dtype == trajectory.final.dtype == torch.float32
    (scale * images.sum()).backward()
    found = [p.grad for p in model.parameters()]
    assert all(g.dtype == torch.float32 for g in found)
    return torch.cat([g.flatten() for g in found]) / scale


@pytest.fixture(scope="module")
def exact(tiny_folder: Path) -> torch.Tensor:
    return gradient(tiny_folder, "fp32", 1.0)


# Rewards averaged over a batch and weighted have small gradients: 1e-9 is below float16's range.
@pytest.mark.parametrize("scale", [1.0, 1e-9])
@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.15), ("fp16", 0.08)])
def test_half_precision_gives_the_gradient(precision, error, scale, tiny_folder, exact):
    found = gradient(tiny_folder, precision, scale)
    assert (found - exact).norm() < error * exact.norm()


def test_scaling_is_exact():
    """Into a module and out again, with two uses of one parameter: as if nothing were there."""
    for size in (1e-30, 1.0, 1e30):
        scaled, weight = GradientRange(), torch.tensor([3.0], requires_grad=True)
        inputs = torch.tensor([1.0, 2.0], requires_grad=True)
        scaled.unscale_gradient_out(weight)
        hidden = scaled.scale_gradient_in(scaled.unscale_gradient_out(inputs * 1) * weight)
        hidden = scaled.scale_gradient_in(scaled.unscale_gradient_out(hidden) * weight)
        (size * hidden.sum()).backward()
        assert scaled.scale is not None and 0.5 <= float(scaled.scale) * size <= 2.0
        assert torch.allclose(inputs.grad, torch.full((2,), 9.0 * size))
        assert torch.allclose(weight.grad, torch.tensor([18.0 * size]))
