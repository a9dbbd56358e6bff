"""Linear layers with LoRA matrices give what peft's give."""

import pytest
import torch
from forth_and_back import results
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from benchmarks.backbone import kernels
from benchmarks.backbone.kernels.lora import can_fuse

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


def test_layers_with_biases_are_done_one_by_one():
    layer = lora(True, BF16)
    with torch.no_grad(), kernels.one_trajectory():
        assert not can_fuse([layer], torch.zeros(1, 12, dtype=BF16))
        assert can_fuse([lora(True, BF16, bias=False)], torch.zeros(1, 12, dtype=BF16))
