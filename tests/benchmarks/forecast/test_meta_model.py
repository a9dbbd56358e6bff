"""A model without weights says what one with weights takes."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_pipeline

from benchmarks.backbone import load
from benchmarks.backbone.base import BaseBackbone
from benchmarks.backbone.kernels import packed
from benchmarks.compute.ledger import Ledger
from benchmarks.forecast.meta_model import MetaModel, PeakBytes


def pack(backbone: BaseBackbone) -> None:
    """One pass forth and back, so that frozen weights have their copies."""
    text, latents = backbone.encode(["a cat"]), torch.zeros(1, *backbone.latent_shape)
    with backbone.ledger.paused():
        noise = backbone.predict(latents.requires_grad_(), 500, text, 1.0)
        backbone.decode(noise).sum().backward()
    for parameter in backbone.parameters():
        parameter.grad = None


@pytest.mark.parametrize(
    "precision",
    [
        "fp32",
        pytest.param(
            "bf16", marks=pytest.mark.skipif(not packed.BF16, reason="no bfloat16 on this CPU")
        ),
    ],
)
def test_copies_of_packed_weights_are_counted(tiny_folder: Path, precision):
    backbone = load(str(tiny_folder), Ledger(), precision)
    pack(backbone)
    copies, seen = list[torch.Tensor](), list(backbone.denoiser.parameters())
    seen += backbone.autoencoder.decoder.parameters()
    while seen:  # what is made of weights may be packed in its turn
        made = [value for _, value in vars(seen.pop()).values() if value.dim() > 1]
        seen += [value for value in made if not value.is_mkldnn]
        copies += made
    found = sum(copy.numel() * copy.element_size() for copy in copies)
    assert found == pytest.approx(MetaModel(str(tiny_folder), precision).packed_bytes, rel=0.2)


def test_weights_are_counted_in_their_precision(tiny_folder: Path):
    pipeline = tiny_pipeline()
    modules = (pipeline.unet, pipeline.vae)
    frozen = sum(p.numel() for module in modules for p in module.parameters())
    text = sum(p.numel() for p in pipeline.text_encoder.parameters())
    for precision, size in (("fp32", 4), ("fp16", 2)):
        model = MetaModel(str(tiny_folder), precision)
        assert model.frozen_bytes == size * (frozen + text)


def test_bytes_extend_linearly():
    one, two = PeakBytes(10, 20, 30), PeakBytes(12, 25, 30)
    assert one.at(1, two) == one and one.at(2, two) == two
    assert one.at(5, two) == PeakBytes(18, 40, 30)


def test_only_a_pass_with_gradient_keeps_something(tiny_meta: MetaModel):
    cost = tiny_meta.denoiser(by_block=False)
    output = 4 * 4 * 8 * 8  # bytes: float32, four channels, 8x8
    none, weights, through = (cost(1, wanted) for wanted in ("none", "weights", "input"))
    assert none.kept == output and none.backward == 0
    assert through.kept >= weights.kept > 10 * output
    blocks = tiny_meta.denoiser(by_block=True, among=("input",))(1, "input")
    assert blocks.kept < through.kept / 2
