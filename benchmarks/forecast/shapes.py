"""The shapes of models on the meta device: enough to count passes and bytes, without weights.

Those of known models are written down from the ``config.json`` of their public repositories (the
same numbers as CompVis ``v1-inference.yaml``, Stability-AI ``sd_xl_base.yaml`` and ``sd3.5`` and
black-forest-labs ``flux`` ``util.py``); any local diffusers folder is read from its own files.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from benchmarks import registry
from benchmarks.api import Condition, UserError
from benchmarks.backbone import family, unpriced
from benchmarks.backbone.base import BaseBackbone
from benchmarks.compute.ledger import Ledger
from benchmarks.config import load_preset


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A pipeline's class, and the configurations of its parts, each with the class it is of."""

    pipeline: str
    parts: Mapping[str, tuple[str, Mapping[str, Any]]]


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
#: T5-XXL's encoder.
_T5 = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
_SD3_VAE = _VAE | {
    "latent_channels": 16,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
}
_FLUX_VAE = _SD3_VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159}

SHAPES = {
    "sd15": Shape(
        pipeline="StableDiffusionPipeline",
        parts={
            "unet": (
                "UNet2DConditionModel",
                _UNET | {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
            ),
            "vae": ("AutoencoderKL", _VAE | {"sample_size": 512}),
            "text_encoder": ("CLIPTextModel", _LARGE),
            "scheduler": ("DDIMScheduler", _SCHEDULER),
        },
    ),
    "sd21": Shape(
        pipeline="StableDiffusionPipeline",
        parts={
            "unet": (
                "UNet2DConditionModel",
                _UNET
                | {
                    "sample_size": 96,
                    "cross_attention_dim": 1024,
                    "attention_head_dim": [5, 10, 20, 20],
                    "use_linear_projection": True,
                    "upcast_attention": True,
                },
            ),
            "vae": ("AutoencoderKL", _VAE | {"sample_size": 768}),
            "text_encoder": ("CLIPTextModel", _clip(1024, 23, 16, 512)),
            "scheduler": ("DDIMScheduler", _SCHEDULER | {"prediction_type": "v_prediction"}),
        },
    ),
    "sdxl": Shape(
        pipeline="StableDiffusionXLPipeline",
        parts={
            "unet": (
                "UNet2DConditionModel",
                _UNET
                | {
                    "sample_size": 128,
                    "block_out_channels": [320, 640, 1280],
                    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
                    "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
                    "transformer_layers_per_block": [1, 2, 10],
                    "cross_attention_dim": 2048,
                    "attention_head_dim": [5, 10, 20],
                    "use_linear_projection": True,
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 256,
                    "projection_class_embeddings_input_dim": 2816,
                },
            ),
            "vae": ("AutoencoderKL", _VAE | {"sample_size": 1024, "scaling_factor": 0.13025}),
            "text_encoder": ("CLIPTextModel", _LARGE),
            "text_encoder_2": ("CLIPTextModelWithProjection", _clip(1280, 32, 20, 1280)),
            "scheduler": ("DDIMScheduler", _SCHEDULER),
        },
    ),
    "sd35-medium": Shape(
        pipeline="StableDiffusion3Pipeline",
        parts={
            "transformer": (
                "SD3Transformer2DModel",
                {
                    "sample_size": 128,
                    "patch_size": 2,
                    "in_channels": 16,
                    "out_channels": 16,
                    "num_layers": 24,
                    "attention_head_dim": 64,
                    "num_attention_heads": 24,
                    "joint_attention_dim": 4096,
                    "caption_projection_dim": 1536,
                    "pooled_projection_dim": 2048,
                    "pos_embed_max_size": 384,
                    "dual_attention_layers": list(range(13)),
                    "qk_norm": "rms_norm",
                },
            ),
            "vae": (
                "AutoencoderKL",
                _SD3_VAE,
            ),
            "text_encoder": ("CLIPTextModelWithProjection", _LARGE),
            "text_encoder_2": ("CLIPTextModelWithProjection", _clip(1280, 32, 20, 1280)),
            "text_encoder_3": ("T5EncoderModel", _T5),
            "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        },
    ),
    "flux-dev": Shape(
        pipeline="FluxPipeline",
        parts={
            "transformer": (
                "FluxTransformer2DModel",
                {
                    "patch_size": 1,
                    "in_channels": 64,
                    "num_layers": 19,
                    "num_single_layers": 38,
                    "attention_head_dim": 128,
                    "num_attention_heads": 24,
                    "joint_attention_dim": 4096,
                    "pooled_projection_dim": 768,
                    "guidance_embeds": True,
                },
            ),
            "vae": (
                "AutoencoderKL",
                _FLUX_VAE,
            ),
            "text_encoder": ("CLIPTextModel", _LARGE),
            "text_encoder_2": ("T5EncoderModel", _T5),
            "scheduler": (
                "FlowMatchEulerDiscreteScheduler",
                {"shift": 3.0, "use_dynamic_shifting": True},
            ),
        },
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
    try:
        index = _read(folder / "model_index.json")
        cls = family([index.get("_class_name")])
        parts = {}
        for part in (*cls.parts, "scheduler"):
            made = index.get(part)
            if made is not None and made[1] is not None:
                kind = "scheduler_config.json" if part == "scheduler" else "config.json"
                parts[part] = cls.parts.get(part, made[1]), _read(folder / part / kind)
        return Shape(pipeline=cls.pipeline_class, parts=parts)
    except (OSError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"--backbone {name}: no shape to plan with; use one of {', '.join(SHAPES)}, emoji, or "
            f"a local diffusers folder ({error})"
        ) from error


def _read(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return values


def empty_pipeline(shape: Shape) -> Any:
    """A pipeline on the meta device, without tokenizers."""
    found = {part: _empty(*described) for part, described in shape.parts.items()}
    cls: Any = getattr(diffusers, shape.pipeline)
    wanted = inspect.signature(cls.__init__).parameters.values()
    rest = [p.name for p in wanted if p.default is p.empty and p.name not in (*found, "self")]
    return cls(**found, **{**dict.fromkeys(rest), **family([shape.pipeline]).reading})


def _empty(cls: str, values: Mapping[str, Any]) -> Any:
    with torch.device("meta"):
        if hasattr(diffusers, cls):
            return getattr(diffusers, cls).from_config(dict(values))
        kind = getattr(transformers, cls)
        return kind(kind.config_class(**values))


def on_meta(name: str, rank: int) -> BaseBackbone:
    """The backbone of this name on the meta device.

    By its shape where that is written down or in a local folder. What a function makes is made,
    and its weights are then forgotten. Raises UserError for anything else.
    """
    known = name in registry.backbones.names() or name not in SHAPES
    preset = load_preset(name) if known else None
    if preset and not isinstance(preset.model, str):
        return unpriced(name, Ledger(), rank=rank, device="meta")
    found = shape(name)
    cls: Any = family([found.pipeline])

    class ShapeOnly(cls):  # type: ignore[misc]
        """Its conditioning has a shape only."""

        def conditions(self, prompts: Sequence[str]) -> Condition:
            """Nothing is encoded."""
            shapes = self.condition_shapes()
            return tuple(torch.zeros(len(prompts), *s, device=self.device) for s in shapes)

    made: BaseBackbone = ShapeOnly(
        empty_pipeline(found),
        Ledger(),
        rank=rank,
        device="meta",
        resolution=preset.resolution if preset else None,
    )
    return made
