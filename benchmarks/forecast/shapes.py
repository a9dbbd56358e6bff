"""The shapes of models on the meta device: enough to count passes and bytes, without weights.

SD v1.5, SD 2.1 and SDXL are written down from the ``config.json`` of their public repositories
(the same numbers as CompVis ``v1-inference.yaml`` and Stability-AI ``sd_xl_base.yaml``); any local
diffusers folder is read from its own files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.api import Condition, UserError
from benchmarks.backbone import unpriced
from benchmarks.backbone.base import BaseBackbone
from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import Ledger
from benchmarks.config import load_preset


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Configurations of a Stable Diffusion's parts, as diffusers and transformers take them."""

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


class ShapeOnly(StableDiffusion):
    """A Stable Diffusion or SDXL on the meta device, whose conditioning has a shape only."""

    def __init__(self, shape: Shape, rank: int) -> None:
        self.shape = shape
        with torch.device("meta"):
            parts: dict[str, Any] = {
                "unet": UNet2DConditionModel.from_config(dict(shape.unet)),
                "vae": AutoencoderKL.from_config(dict(shape.vae)),
                "text_encoder": nn.ModuleList(
                    CLIPTextModel(CLIPTextConfig(**text)) for text in shape.text
                ),
                "tokenizer": None,
            }
        parts["scheduler"] = DDIMScheduler.from_config(dict(shape.scheduler))
        pipeline: Any = SimpleNamespace(**parts)
        super().__init__(pipeline, Ledger(), rank=rank, device="meta")

    def conditions(self, prompts: Sequence[str]) -> Condition:
        """Of SDXL also the pooled text, and the sizes of picture and crop."""
        config = self.shape.unet
        shapes: list[tuple[int, ...]] = [self.shape.tokens]
        if config.get("addition_embed_type") == "text_time":
            sizes = 6 * config["addition_time_embed_dim"]
            shapes += [(config["projection_class_embeddings_input_dim"] - sizes,), (6,)]
        return tuple(torch.zeros(len(prompts), *s, device=self.device) for s in shapes)

    def denoise(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """One pass of the U-Net."""
        if len(condition) == 1:
            return super().denoise(latents, timesteps, condition)
        text, pooled, sizes = condition
        more = {"text_embeds": pooled, "time_ids": sizes}
        output: Tensor = self.denoiser(
            latents, timesteps, encoder_hidden_states=text, added_cond_kwargs=more
        ).sample
        return output


def on_meta(name: str, rank: int) -> BaseBackbone:
    """The backbone of this name on the meta device.

    By its shape where that is written down or in a local folder. What a function makes is made,
    and its weights are then forgotten. Raises UserError for anything else.
    """
    if name in SHAPES or isinstance(load_preset(name).model, str):
        return ShapeOnly(shape(name), rank)
    return unpriced(name, Ledger(), rank=rank, device="meta")
