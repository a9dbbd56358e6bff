"""The pipelines whose training is timed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from benchmarks.config import load_preset
from benchmarks.forecast.shapes import SHAPES

#: Low resolution: what differs between trainers matters most where the passes are short.
PIXELS = 64


def embedded() -> StableDiffusionPipeline:
    """The embedded model."""
    return StableDiffusionPipeline.from_pretrained(
        _folder(), dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )


def sd15() -> StableDiffusionPipeline:
    """A model of the shape of SD v1.5 with random weights, for pictures of ``PIXELS`` pixels."""
    shape = sd15_configs()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(_folder(), subfolder="tokenizer")
    tokenizer.model_max_length = shape["text_encoder"]["max_position_embeddings"]
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_config(shape["vae"]),
        text_encoder=CLIPTextModel(CLIPTextConfig(**shape["text_encoder"])),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_config(shape["unet"]),
        scheduler=DDIMScheduler.from_config(shape["scheduler"]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


MODELS = {"embedded": embedded, "sd15": sd15}


def made(model: str, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """A pipeline of this name in this precision."""
    pipeline = MODELS[model]()
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        torch.nn.Module.to(module, dtype)  # diffusers' own prints a warning
    return pipeline


def sd15_configs() -> dict[str, dict[str, Any]]:
    """Its configurations by part."""
    parts = {part: dict(values) for part, (_, values) in SHAPES["sd15"].parts.items()}
    scale = 2 ** (len(parts["vae"]["block_out_channels"]) - 1)
    parts["unet"]["sample_size"] = PIXELS // scale
    parts["vae"]["sample_size"] = PIXELS
    return parts


def write_configs(folder: Path) -> None:
    """As a diffusers folder without weights, which the planner can read."""
    shape = SHAPES["sd15"]
    index = {part: ["", cls] for part, (cls, _) in shape.parts.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": shape.pipeline} | index))
    names = {"scheduler": "scheduler_config.json"}
    for part, values in sd15_configs().items():
        (folder / part).mkdir()
        (folder / part / names.get(part, "config.json")).write_text(json.dumps(values))


def apart(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """A pipeline with a U-Net and a VAE of its own, for somebody else to train."""
    parts = dict(pipeline.components)
    parts |= {name: copy.deepcopy(parts[name]) for name in ("unet", "vae", "scheduler")}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def _folder() -> str:
    model = load_preset("emoji").model
    assert isinstance(model, str)
    return model
