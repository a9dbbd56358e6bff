"""Gradients are brought into float16's range and out again."""

import torch

from benchmarks.backbone.fp16_range import GradientRange


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
