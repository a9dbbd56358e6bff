"""The shapes of Stable Diffusion models: enough to count passes and bytes, without any weights.

SD v1.5, SD 2.1 and SDXL are written down from the ``config.json`` of their public repositories
(the same numbers as CompVis ``v1-inference.yaml`` and Stability-AI ``sd_xl_base.yaml``); any local
diffusers folder is read from its own files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.api import UserError
from benchmarks.config import load_preset


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Configurations of a pipeline's parts, as diffusers and transformers take them."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    text: tuple[Mapping[str, Any], ...]  # one per text encoder

    @property
    def tokens(self) -> tuple[int, int]:
        """Length and width of the text conditioning."""
        return self.text[0]["max_position_embeddings"], self.unet["cross_attention_dim"]


def _clip(width: int, layers: int, heads: int, projection: int) -> dict[str, Any]:
    return {
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": projection,
    }


_LARGE = _clip(768, 12, 12, 768)  # the text tower of CLIP ViT-L/14
_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
_UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}

SHAPES = {
    "sd15": Shape(
        unet=_UNET | {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        vae=_VAE | {"sample_size": 512},
        scheduler=_SCHEDULER,
        text=(_LARGE,),
    ),
    "sd21": Shape(
        unet=_UNET
        | {
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": [5, 10, 20, 20],
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        vae=_VAE | {"sample_size": 768},
        scheduler=_SCHEDULER | {"prediction_type": "v_prediction"},
        text=(_clip(1024, 23, 16, 512),),
    ),
    "sdxl": Shape(
        unet=_UNET
        | {
            "sample_size": 128,
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        vae=_VAE | {"sample_size": 1024, "scaling_factor": 0.13025},
        scheduler=_SCHEDULER,
        text=(_LARGE, _clip(1280, 32, 20, 1280)),
    ),
}


def shape(name: str) -> Shape:
    """A shape by name, or that of a backbone in a local diffusers folder.

    Raises UserError for anything else.
    """
    if name in SHAPES:
        return SHAPES[name]
    model = load_preset(name).model
    folder = Path(model if isinstance(model, str) else name)

    def read(file: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((folder / file).read_text("utf-8"))
        return values

    try:
        return Shape(
            unet=read("unet/config.json"),
            vae=read("vae/config.json"),
            scheduler=read("scheduler/scheduler_config.json"),
            text=(read("text_encoder/config.json"),),
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"--backbone {name}: no shape to plan with; use one of {', '.join(SHAPES)}, emoji, or "
            f"a local diffusers folder ({error})"
        ) from error
