"""Normalisation and residual blocks give what PyTorch's and diffusers' give."""

import copy

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from forth_and_back import results
from torch import nn

from benchmarks.backbone import kernels

BF16 = torch.bfloat16


def test_group_normalisation_in_half_precision(compared):
    torch.manual_seed(0)
    plain = nn.GroupNorm(4, 16)
    nn.init.normal_(plain.weight)
    ours = copy.deepcopy(plain).to(BF16)
    kernels.install(ours, cpu=True)
    given = torch.randn(2, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    for one, other in zip(results(ours, given.to(BF16)), results(plain, given), strict=True):
        assert one.dtype == BF16
        compared("to single precision", one.float(), other, 2e-2)


@pytest.mark.parametrize("kind", ["default", "scale_shift"])
@pytest.mark.parametrize("channels", [8, 12])
@pytest.mark.parametrize("times", [16, None])
def test_residual_blocks(kind, channels, times):
    torch.manual_seed(0)
    plain = ResnetBlock2D(
        in_channels=8,
        out_channels=channels,
        temb_channels=times,
        groups=4,
        time_embedding_norm=kind if times else "default",
    )
    ours = copy.deepcopy(plain)
    kernels.install(ours, cpu=False)
    assert type(ours) is kernels.ResnetBlock
    states = {"temb": torch.randn(2, times) if times else None}
    given = torch.randn(2, 8, 5, 5)
    found = [results(block, given, states=states) for block in (ours, plain)]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_other_residual_blocks_are_left_to_diffusers():
    for other in ({"dropout": 0.1}, {"output_scale_factor": 2.0}, {"up": True}, {"down": True}):
        block = ResnetBlock2D(in_channels=8, groups=4, **other)
        kernels.install(block, cpu=True)
        assert type(block) is ResnetBlock2D
