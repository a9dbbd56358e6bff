"""Attention gives what diffusers' gives; keys and values of a text are computed once."""

import copy

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from forth_and_back import results
from peft import LoraConfig, inject_adapter_in_model
from test_convolution import upsampling
from torch import nn

from benchmarks.backbone import kernels
from benchmarks.backbone.kernels.lora import can_fuse

BF16 = torch.bfloat16


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
