"""Our kernels give what PyTorch's and peft's give, and are faster where they are used."""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from benchmarks.backbone import kernels
from benchmarks.speed import clock

BF16 = torch.bfloat16


def lora(ours: bool, dtype: torch.dtype, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 20, bias=bias)).requires_grad_(False).to(dtype)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["0"])
    if ours:
        config._register_custom_module({nn.Linear: kernels.LoraLinear})
    inject_adapter_in_model(config, module)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            wide = torch.promote_types(dtype, torch.float32)
            parameter.data = torch.randn(parameter.shape, dtype=wide) / 4
    return module[0]


def results(module, given: Tensor, needed: bool = True) -> list[Tensor]:
    """Output, and the gradients of its weighted sum."""
    given = given.clone().requires_grad_(needed)
    with torch.autocast("cpu", BF16, enabled=given.dtype == BF16):
        output = module(given)
    output.backward(torch.linspace(-1, 1, output.numel()).view_as(output).to(output.dtype))
    weights = module.parameters() if isinstance(module, nn.Module) else ()
    gradients = [given.grad, *(p.grad for p in weights)]
    return [output.detach(), *(g.clone() for g in gradients if g is not None)]


@pytest.mark.parametrize("needed", [True, False], ids=["through", "first"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (BF16, 2e-2)], ids=str)
def test_lora_layers_equal_pefts(dtype, tolerance, bias, needed, compared):
    given = torch.randn(3, 5, 12, dtype=dtype)
    found, expected = (results(lora(ours, dtype, bias), given, needed) for ours in (True, False))
    assert len(found) == len(expected) == (4 if needed else 3)
    for what, one, other in zip(("output", "gradient"), found, expected, strict=False):
        compared(what, one, other, tolerance)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.allclose(one, other, rtol=tolerance, atol=0.02)


def test_lora_layers_can_be_switched_off():
    layer, given = lora(True, torch.float32), torch.randn(2, 12)
    layer.enable_adapters(False)
    assert torch.equal(layer(given), layer.base_layer(given))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 1), (3, 0)])
def test_convolutions_as_products(kernel, padding, stride, compared, monkeypatch):
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 9, kernel, stride, padding).double()
    ours = copy.deepcopy(plain)
    kernels.install(ours)
    monkeypatch.setattr(kernels, "CHANNELS_PER_PIXEL", 0)
    given = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = results(ours, given.to(memory_format=layout))
        ours.zero_grad()
        for what, one, other in zip(
            ("output", "input", "weight", "bias"), found, results(plain, given), strict=True
        ):
            compared(what, one, other, 1e-12)
        plain.zero_grad()


def test_many_pixels_and_other_convolutions_are_left_to_pytorch(monkeypatch):
    called = []
    monkeypatch.setattr(F, "linear", lambda *a: called.append(a))
    for layer, side in (
        (nn.Conv2d(4, 64, 3, padding=1), 5),
        (nn.Conv2d(4, 64, 3, padding=1, groups=2), 2),
        (nn.Conv2d(4, 64, 3, padding=2, dilation=2), 2),
        (nn.Conv2d(4, 64, 3, padding=1, padding_mode="reflect"), 2),
    ):
        kernels.install(layer)
        assert layer(torch.randn(1, 4, side, side)).shape == (1, 64, side, side)
    assert not called


def test_group_normalisation_in_half_precision(compared):
    torch.manual_seed(0)
    plain = nn.GroupNorm(4, 16)
    nn.init.normal_(plain.weight)
    ours = copy.deepcopy(plain).to(BF16)
    kernels.install(ours)
    given = torch.randn(2, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    for one, other in zip(results(ours, given.to(BF16)), results(plain, given), strict=True):
        assert one.dtype == BF16
        compared("to single precision", one.float(), other, 2e-2)


@pytest.mark.parametrize("text", [True, False])
def test_attention_in_half_precision(text, compared):
    torch.manual_seed(0)
    layer = Attention(16, cross_attention_dim=12 if text else None, heads=2, dim_head=8).to(BF16)
    given = torch.randn(3, 10, 16).to(BF16)
    states = {"encoder_hidden_states": torch.randn(3, 7, 12).to(BF16)} if text else {}
    found = []
    for processor in (kernels.Attention, AttnProcessor2_0):
        if processor is kernels.Attention:
            kernels.install(layer)
        else:
            layer.set_processor(processor())
        assert type(layer.processor) is processor
        layer.zero_grad()
        found.append(results(lambda x: layer(x, **states), given))
        found[-1] += [p.grad for p in layer.parameters()]
        with torch.no_grad(), torch.autocast("cpu", BF16):
            found[-1].append(layer(given, **states))
    for one, other in zip(*found, strict=True):
        compared("to half precision", one.float(), other.float(), 3e-2)
    assert torch.equal(found[0][-1], found[0][0])  # the same without gradient


def test_attention_with_norms_is_left_to_diffusers():
    layer = Attention(16, heads=2, dim_head=8, norm_num_groups=4, residual_connection=True).to(BF16)
    kernels.install(layer)
    assert type(layer.processor) is AttnProcessor2_0


def test_the_product_saves_time():
    """Four to eight times as fast where it was written."""
    plain = nn.Conv2d(1280, 1280, 3, padding=1).requires_grad_(False)
    plain.to(memory_format=torch.channels_last)
    ours = copy.deepcopy(plain)
    kernels.install(ours)
    given = torch.randn(2, 1280, 1, 1)
    seconds = clock.in_turns({"fast": lambda: ours(given), "plain": lambda: plain(given)}, 5)
    assert clock.ratio(seconds, "plain", "fast")["median"] > 1.5
