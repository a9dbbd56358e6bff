"""The shapes that are written down are those of the published models."""

from pathlib import Path

import diffusers
import pytest
import torch
from conftest import tiny_pipeline

from benchmarks.api import UserError
from benchmarks.forecast.shapes import SHAPES, on_meta, shape


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("sd15", 859_520_964),
        ("sd21", 865_910_724),
        ("sdxl", 2_567_463_684),
        ("sd35-medium", 2_243_171_520),
        ("flux-dev", 11_901_408_320),
    ],
)
def test_shapes_have_the_published_number_of_parameters(name: str, parameters: int):
    parts = SHAPES[name].parts
    cls, config = parts.get("unet") or parts["transformer"]
    with torch.device("meta"):
        denoiser = getattr(diffusers, cls).from_config(dict(config))
    assert sum(p.numel() for p in denoiser.parameters()) == parameters


def test_a_local_folder_is_read(tiny_folder: Path):
    model, pipeline = on_meta(str(tiny_folder), rank=4), tiny_pipeline()
    for ours, theirs in ((model.denoiser, pipeline.unet), (model.autoencoder, pipeline.vae)):
        own = sum(p.numel() for n, p in ours.named_parameters() if "lora_" not in n)
        assert own == sum(p.numel() for p in theirs.parameters())
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.latent_shape == (4, 8, 8)
    assert [c.shape for c in model.encode(["a cat", "a dog"])] == [(2, 16, 16)]


def test_what_has_no_shape_is_refused(tmp_path: Path):
    for name in (str(tmp_path), "owner/name"):
        with pytest.raises(UserError, match="no shape to plan with; use one of sd15, sd21, sdxl"):
            shape(name)
