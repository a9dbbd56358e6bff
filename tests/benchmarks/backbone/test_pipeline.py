"""What diffusers folders are read, and what is said of others."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import tiny_pipeline

from benchmarks.api import UserError
from benchmarks.backbone import load
from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import Ledger


def test_pictures_are_multiples_of_the_vaes_scale():
    for wrong in ((16, 15), (16,), (0, 16)):
        with pytest.raises(UserError, match="must be a height and a width, multiples of 2"):
            StableDiffusion(tiny_pipeline(), Ledger(), resolution=wrong)


def folder_that_says(tiny_folder: Path, place: Path, text: str) -> str:
    """The tiny folder with another ``model_index.json``."""
    shutil.copytree(tiny_folder, place)
    (place / "model_index.json").write_text(text)
    return str(place)


def test_a_folder_of_another_kind_is_named_with_what_is_supported(tiny_folder, tmp_path):
    index = json.loads((tiny_folder / "model_index.json").read_text())
    wrong = {
        "a WanPipeline is of no known family; supported: StableDiffusionPipeline, Stable": {
            "_class_name": "WanPipeline"
        },
        "a None is of no known family": {"_class_name": None},
        "not a diffusers folder with safetensors weights": [1],
        "unet is a UNet2DModel; supported: UNet2DConditionModel": {
            "unet": ["diffusers", "UNet2DModel"]
        },
    }
    for i, (message, values) in enumerate(wrong.items()):
        text = json.dumps(index | values if isinstance(values, dict) else values)
        folder = folder_that_says(tiny_folder, tmp_path / str(i), text)
        with pytest.raises(UserError, match=message) as error:
            load(folder, Ledger())
        said = str(error.value)
        assert said.startswith(f"--backbone {folder}: ") and "\n" not in said


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a diffusers folder with safetensors"):
        load(str(tmp_path), Ledger())
