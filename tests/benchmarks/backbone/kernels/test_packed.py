"""Frozen weights in oneDNN's order give what PyTorch's functions give, until they change."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.backbone import kernels
from benchmarks.backbone.kernels import packed
from benchmarks.forecast.live_bytes import Live
from benchmarks.speed import clock

BF16 = torch.bfloat16
TYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (BF16, 1e-2)])


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    result = torch.randn(shape).to(dtype)
    return result.to(memory_format=torch.channels_last) if len(shape) == 4 else result


@TYPES
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "pad"), [(1, 0), (3, 1)])
def test_convolutions(dtype, tolerance, stride, kernel, pad, compared):
    torch.manual_seed(0)
    x, w, b = random(2, 6, 8, 8), random(9, 6, kernel, kernel), random(9)
    x, w, b = x.to(dtype), w.to(dtype), b.to(dtype)
    expected = F.conv2d(x, w, b, stride, pad)
    found = packed.convolution(x, w, b, (stride, stride), (pad, pad))
    compared("plain", found.float(), expected.float(), tolerance)
    assert found.stride() == expected.stride()
    rest = (8 + 2 * pad - kernel) % stride
    back = F.conv_transpose2d(expected, w, None, stride, pad, rest)
    how = (stride, stride), (pad, pad), (rest, rest)
    found = packed.transposed_convolution(expected, w, None, *how)
    compared("transposed", found.float(), back.float(), tolerance)
    packs = packed.BF16 if dtype == BF16 else packed.AVAILABLE  # not every CPU multiplies bfloat16
    assert bool(w.__dict__) == packs


@TYPES
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(dtype, tolerance, bias, compared):
    torch.manual_seed(0)
    plain = nn.Linear(12, 20, bias).to(dtype).requires_grad_(False)
    ours = copy.deepcopy(plain)
    kernels.install(ours, cpu=True)
    assert type(ours) is kernels.Linear
    given, found = random(3, 5, 12, dtype=dtype), []
    for layer in (ours, plain):
        x = given.clone().requires_grad_()
        output = layer(x)
        output.transpose(0, 1).flatten().cumsum(0).sum().backward()
        with torch.no_grad():
            assert torch.equal(layer(given), output)
        found.append((output.detach(), x.grad))
    for what, one, other in zip(("output", "gradient"), *found, strict=True):
        compared(what, one.float(), other.float(), tolerance)


def test_trained_weights_are_left_to_pytorch():
    for layer, given in ((nn.Linear(4, 4), random(2, 4)), (nn.Conv2d(4, 4, 1), random(1, 4, 8, 8))):
        kernels.install(layer, cpu=True)
        layer(given).sum().backward()
        assert layer.weight.grad is not None and not layer.weight.__dict__


def test_changed_weights_are_noticed(compared):
    torch.manual_seed(0)
    layer, given = nn.Conv2d(4, 4, 3).requires_grad_(False), random(2, 4, 8, 8)
    kernels.install(layer, cpu=True)

    def check(what: str, tolerance: float = 1e-6) -> None:
        weight, bias = layer.weight, layer.bias
        expected = F.conv2d(given.to(weight.dtype), weight.clone(), bias)
        compared(what, layer(given.to(weight.dtype)).float(), expected.float(), tolerance)

    check("as it was")
    layer.weight.mul_(-2)
    check("in place")
    layer.load_state_dict({"weight": torch.randn(4, 4, 3, 3), "bias": torch.randn(4)})
    check("loaded")
    layer.to(BF16)
    check("in another type", 1e-2)
    assert layer.state_dict().keys() == {"weight", "bias"}
    assert not copy.deepcopy(layer).weight.__dict__


def test_plain_is_pytorchs_own():
    layer, given = nn.Conv2d(4, 4, 3).requires_grad_(False), random(2, 4, 8, 8)
    kernels.install(layer, cpu=True)
    with kernels.reference_operators():
        layer(given)
    assert not layer.weight.__dict__


def test_memory_is_counted_beside_them():
    w, x = random(4, 4, 1, 1), random(2, 4, 8, 8)
    with Live() as live:
        kept = packed.convolution(x, w, None, (1, 1), (0, 0))
    assert live.now == kept.untyped_storage().nbytes() == 2 * 4 * 8 * 8 * 4


@pytest.mark.slow
@pytest.mark.skipif(not packed.AVAILABLE, reason="PyTorch without oneDNN")
def test_it_saves_time():
    """A third where it was written, on an idle machine."""
    w, x = random(192, 192, 3, 3), random(16, 192, 4, 4)
    how = (1, 1), (1, 1)
    seconds = clock.in_turns(
        {
            "fast": lambda: packed.convolution(x, w, None, *how),
            "plain": lambda: F.conv2d(x, w, None, *how),
        },
        41,
    )
    assert clock.ratio(seconds, "plain", "fast")["median"] > 1.05
