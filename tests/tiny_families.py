"""Random pipelines of the other families, as small as ``conftest.tiny_pipeline``."""

from collections.abc import Callable
from typing import Any

import torch
from conftest import tiny_scheduler, tiny_text, tiny_tokenizer, tiny_unet, tiny_vae
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
)
from transformers import (
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)


def tiny_t5() -> tuple[T5EncoderModel, T5TokenizerFast]:
    """A random T5 with a token per letter, 16 numbers per token."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = T5TokenizerFast(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)
    config = T5Config(
        vocab_size=len(pieces), d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2
    )
    return T5EncoderModel(config).eval(), tokenizer


def tiny_sdxl() -> StableDiffusionXLPipeline:
    """SDXL: 16-pixel images, text of two encoders side by side, an autoencoder in float32."""
    torch.manual_seed(0)
    more = {"num_hidden_layers": 2}  # it is the last but one layer that is read
    return StableDiffusionXLPipeline(
        vae=tiny_vae(force_upcast=True),
        text_encoder=tiny_text(**more),
        text_encoder_2=tiny_text(CLIPTextModelWithProjection, projection_dim=8, **more),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=tiny_unet(
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=8 + 6 * 4,
        ),
        scheduler=tiny_scheduler(),
        add_watermarker=False,
    )


def tiny_sd3() -> StableDiffusion3Pipeline:
    """SD3.5: 16-pixel images, queries and keys normalised, a block with a second attention."""
    torch.manual_seed(0)
    t5, t5_tokenizer = tiny_t5()
    clip = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16, "projection_dim": 8}
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,  # the last has no text to hand on
            attention_head_dim=4,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=8,
            pooled_projection_dim=16,
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(shift_factor=0.1, scaling_factor=1.5),
        text_encoder=tiny_text(CLIPTextModelWithProjection, **clip),
        tokenizer=tiny_tokenizer(),
        text_encoder_2=tiny_text(CLIPTextModelWithProjection, **clip),
        tokenizer_2=tiny_tokenizer(),
        text_encoder_3=t5,
        tokenizer_3=t5_tokenizer,
    )


def tiny_flux() -> FluxPipeline:
    """FLUX.1-dev: 16-pixel images, a block of each kind, guidance as an input."""
    torch.manual_seed(0)
    t5, t5_tokenizer = tiny_t5()
    pipeline = FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=1,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_vae(shift_factor=0.1, scaling_factor=0.5),
        text_encoder=tiny_text(),
        tokenizer=tiny_tokenizer(),
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
    )
    pipeline.default_sample_size = 8
    return pipeline


FAMILIES: dict[str, Callable[[], Any]] = {"sdxl": tiny_sdxl, "sd3": tiny_sd3, "flux": tiny_flux}

PROMPTS = ["a cat", "dog"]


def drawn(pipeline: Any, noise: torch.Tensor, steps: int = 4, guidance: float = 2.5) -> Any:
    """The pipeline's own pictures of ``PROMPTS``; FLUX packs its noise."""
    pipeline.set_progress_bar_config(disable=True)
    sides = {"height": 2 * noise.shape[2], "width": 2 * noise.shape[3]}
    if isinstance(pipeline, FluxPipeline):
        noise = pipeline._pack_latents(noise, *noise.shape)
    return pipeline(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=noise,
        output_type="pt",
        **sides,
    ).images
