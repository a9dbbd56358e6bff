"""Our kernels give what PyTorch's and peft's give, and are faster where they are used."""

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from benchmarks.backbone import kernels
from benchmarks.backbone.kernels.lora import can_fuse
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


def results(module, given: Tensor, needed: bool = True, states: Any = None) -> list[Tensor]:
    """Output, and the gradients of its weighted sum."""
    given = given.clone().requires_grad_(needed)
    with torch.autocast("cpu", BF16, enabled=given.dtype == BF16):
        output = module(given, **(states or {}))
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


@pytest.mark.parametrize(
    "how", [{"groups": 2}, {"dilation": 2}, {"padding_mode": "reflect"}, {"padding": "same"}]
)
def test_other_convolutions_are_left_to_pytorch(how):
    plain = nn.Conv2d(4, 6, 3, **({"padding": 1} | how)).requires_grad_(False)
    ours, given = copy.deepcopy(plain), torch.randn(1, 4, 5, 5)
    kernels.install(ours, cpu=True)
    found, expected = results(ours, given), results(plain, given)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


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


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (BF16, 3e-2)], ids=str)
def test_attention_equals_diffusers(dtype, tolerance, text, compared):
    torch.manual_seed(0)
    plain = Attention(16, cross_attention_dim=12 if text else None, heads=2, dim_head=8).to(dtype)
    ours = copy.deepcopy(plain)
    kernels.install(ours, cpu=True)
    assert type(plain) is Attention and type(ours) is kernels.Attention
    given = torch.randn(3, 10, 16).to(dtype)
    states = {"encoder_hidden_states": torch.randn(3, 7, 12).to(dtype)} if text else {}
    found = [results(layer, given, states=states) for layer in (ours, plain)]
    for one, other in zip(*found, strict=True):
        compared("difference", one.float(), other.float(), tolerance)
    with torch.no_grad(), torch.autocast("cpu", BF16, enabled=dtype == BF16):
        assert torch.equal(ours(given, **states), found[0][0])  # the same without gradient


def test_other_attention_is_left_to_diffusers():
    for layer in (
        Attention(16, heads=2, dim_head=8, norm_num_groups=4),
        Attention(16, heads=2, dim_head=8, residual_connection=True),
        Attention(16, heads=2, dim_head=8, rescale_output_factor=2.0),
        Attention(16, heads=2, dim_head=8, processor=AttnProcessor()),
    ):
        kernels.install(layer, cpu=True)
        assert type(layer) is Attention
    plain = Attention(16, heads=2, dim_head=8)
    masked, given, mask = copy.deepcopy(plain), torch.randn(2, 4, 16), torch.zeros(2, 1, 4)
    mask[..., 2:] = -1e4
    kernels.install(masked, cpu=True)
    assert torch.equal(
        masked(given, attention_mask=mask), plain(given, attention_mask=mask)
    ) and not torch.equal(masked(given), masked(given, attention_mask=mask))


@pytest.fixture
def counted_attention(monkeypatch):
    """An attention layer with LoRA in its keys, and what counts when keys are computed."""
    torch.manual_seed(0)
    layer = Attention(16, cross_attention_dim=12, heads=2, dim_head=8)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_k"], init_lora_weights=False)
    config._register_custom_module({nn.Linear: kernels.LoraLinear})
    inject_adapter_in_model(config, layer)
    kernels.install(layer, cpu=True)
    called, plain = [], kernels.Attention._keys_and_values
    monkeypatch.setattr(
        kernels.Attention, "_keys_and_values", lambda *a: called.append(1) or plain(*a)
    )
    return layer, called


def test_keys_and_values_of_a_text_are_computed_once_per_trajectory(counted_attention):
    layer, called = counted_attention
    given, texts = torch.randn(3, 2, 10, 16), torch.randn(2, 2, 7, 12)
    for text in texts:  # whatever was kept before
        expected = [layer(x, text).detach() for x in given]
        called.clear()
        with torch.no_grad(), kernels.one_trajectory():
            found = [layer(x, text) for x in given]
        assert len(called) == 1
        assert all(map(torch.equal, found, expected))
        layer.to_k.lora_B["default"].weight.data.add_(1.0)  # which no version counter shows
    called.clear()
    with torch.no_grad():
        layer(given[0], text), layer(given[0], text)
    with kernels.one_trajectory():
        layer(given[0], text), layer(given[0], text)
    assert len(called) == 4  # neither outside of a trajectory nor with gradient


def test_two_texts_in_one_trajectory_have_keys_of_their_own(counted_attention):
    layer, called = counted_attention
    given, one, other = torch.randn(2, 10, 16), torch.randn(2, 7, 12), torch.randn(2, 7, 12)
    expected = [layer(given, text).detach() for text in (one, other)]
    called.clear()
    with torch.no_grad(), kernels.one_trajectory():
        for _ in range(2):
            found = [layer(given, text) for text in (one, other)]
            assert all(map(torch.equal, found, expected))
        assert len(called) == 2
        one.add_(1.0)  # no longer the same text
        assert not torch.equal(layer(given, one), found[0]) and len(called) == 3


def test_reference_operators_are_pytorchs(counted_attention):
    layer, called = counted_attention
    ours, plain = upsampling(6, torch.float32)
    given, text = torch.randn(2, 10, 16), torch.randn(2, 7, 12)
    with torch.no_grad(), kernels.one_trajectory(), kernels.reference_operators():
        layer(given, text), layer(given, text)
        assert len(called) == 2  # nothing is cached
        picture = torch.randn(1, 6, 4, 4)
        assert torch.equal(ours(picture), plain(picture))
        assert not vars(ours.conv.weight)  # nothing is packed


def test_keys_and_values_without_lora_are_others(counted_attention):
    layer, called = counted_attention
    given, text = torch.randn(2, 10, 16), torch.randn(2, 7, 12)
    with torch.no_grad(), kernels.one_trajectory():
        adapted = layer(given, text)
        layer.to_k.enable_adapters(False)
        base = layer(given, text)
        layer.to_k.enable_adapters(True)
        assert torch.equal(layer(given, text), adapted) and not torch.equal(base, adapted)
    assert len(called) == 2


def test_frozen_convolutions_keep_no_input(compared):
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 9, 3, 2, 1).double().requires_grad_(False)
    ours = copy.deepcopy(plain)
    kernels.install(ours, cpu=False)
    given = torch.randn(2, 6, 7, 4, dtype=torch.float64)
    for what, one, other in zip(
        ("output", "input"), results(ours, given), results(plain, given), strict=True
    ):
        compared(what, one, other, 1e-12)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        ours(given.requires_grad_())
        assert [id(x) for x in kept] == [id(ours.weight)]
        plain(given)
        assert any(x.data_ptr() == given.data_ptr() for x in kept)  # PyTorch's own does


def upsampling(channels: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = Upsample2D(channels, use_conv=True, out_channels=channels + 2).to(dtype)
    ours = copy.deepcopy(plain.requires_grad_(False))
    kernels.install(ours, cpu=True)
    assert type(ours) is kernels.Upsample
    return ours, plain


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (BF16, 2e-2)], ids=str)
def test_upsampling_and_convolution_as_one(dtype, tolerance, compared):
    ours, plain = upsampling(6, dtype)
    given = torch.randn(2, 6, 5, 4, dtype=dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = results(ours, given.to(memory_format=layout)), results(plain, given)
        for what, one, other in zip(("output", "input"), *found, strict=True):
            compared(what, one.double(), other.double(), tolerance)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    one, other = ours(given, (9, 7)), plain(given, (9, 7))  # another size than the double
    assert one.shape == (2, 8, 9, 7) and torch.equal(one, other)


def test_other_upsampling_is_left_to_diffusers():
    for layer in (
        Upsample2D(4).requires_grad_(False),
        Upsample2D(4, use_conv_transpose=True).requires_grad_(False),
        Upsample2D(4, use_conv=True, kernel_size=1, padding=0).requires_grad_(False),
        Upsample2D(4, use_conv=True, interpolate=False).requires_grad_(False),
        Upsample2D(4, use_conv=True),  # its weights are trained
    ):
        kernels.install(layer, cpu=True)
        assert type(layer) is Upsample2D


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


def test_queries_keys_and_values_together(compared):
    """In bfloat16 along a trajectory; they see the LoRA matrices as they are then."""
    torch.manual_seed(0)
    layer = Attention(32, heads=2, dim_head=16).to(BF16).requires_grad_(False)
    config = LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    config._register_custom_module({nn.Linear: kernels.LoraLinear})
    inject_adapter_in_model(config, layer)
    kernels.install(layer, cpu=True)
    given = torch.randn(3, 10, 32).to(BF16)
    layers = layer.to_q, layer.to_k, layer.to_v
    for _ in range(2):
        expected = layer(given).detach()
        with torch.no_grad(), kernels.one_trajectory():
            assert can_fuse(layers, given)
            compared("attention", layer(given).float(), expected.float(), 1e-2)
            for part in layers:
                part.enable_adapters(False)
            assert not can_fuse(layers, given)
            for part in layers:
                part.enable_adapters(True)
        layer.to_v.lora_B["default"].weight.data.mul_(-2)
    assert not can_fuse(layers, given)


def test_layers_with_biases_are_done_one_by_one():
    layer = lora(True, BF16)
    with torch.no_grad(), kernels.one_trajectory():
        assert not can_fuse([layer], torch.zeros(1, 12, dtype=BF16))
        assert can_fuse([lora(True, BF16, bias=False)], torch.zeros(1, 12, dtype=BF16))


def test_one_convolution_saves_time():
    """Nearly twice as fast."""
    ours, plain = upsampling(96, torch.float32)
    for layer in (ours, plain):
        layer.to(memory_format=torch.channels_last)
    given = torch.randn(8, 96, 16, 16).to(memory_format=torch.channels_last)
    seconds = clock.in_turns({"fast": lambda: ours(given), "plain": lambda: plain(given)}, 9)
    assert clock.ratio(seconds, "plain", "fast")["median"] > 1.2
