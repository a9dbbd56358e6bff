"""Stable Diffusion XL: two text encoders, and a U-Net that is told the size of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.api import Condition
from benchmarks.backbone.stable_diffusion import StableDiffusion


class StableDiffusionXL(StableDiffusion):
    """SDXL with a frozen base and trainable weights in its U-Net.

    The conditioning is the hidden states of both text encoders side by side, the pooled text of the
    second, and the time ids: the picture's size, no crop, and its size again.
    """

    pipeline_class = "StableDiffusionXLPipeline"
    parts: ClassVar = {
        **StableDiffusion.parts,
        "text_encoder_2": "CLIPTextModelWithProjection",
    }
    reading: ClassVar = {"add_watermarker": False}
    added = ("text_time",)

    def autoencoder_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """In float16 most of its autoencoders overflow, and say so."""
        return torch.float32 if dtype == torch.float16 and self.vae.config.force_upcast else dtype

    def conditions(self, prompts: Sequence[str]) -> Condition:
        """Text (B, length, width), pooled text (B, width) and time ids (B, 6)."""
        text, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False
        )
        if self.pipeline.config.force_zeros_for_empty_prompt:
            empty = torch.tensor([not prompt for prompt in prompts], device=self.device)
            text, pooled = text.clone(), pooled.clone()
            text[empty], pooled[empty] = 0, 0
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        size = [float(side * scale) for side in self.latent_shape[1:]]
        ids = torch.tensor([*size, 0.0, 0.0, *size], device=self.device, dtype=text.dtype)
        return text, pooled, ids.expand(len(prompts), -1)

    def condition_shapes(self) -> list[tuple[int, ...]]:
        """Of one prompt."""
        return [
            *super().condition_shapes(),
            (self.pipeline.text_encoder_2.config.projection_dim,),
            (6,),
        ]

    def denoise(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """One pass of the U-Net."""
        text, pooled, ids = condition
        output: Tensor = self.denoiser(
            latents,
            timesteps,
            encoder_hidden_states=text,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
        ).sample
        return output

    def unscaled(self, latents: Tensor) -> Tensor:
        """Latents as the autoencoder takes them; some have a mean and a deviation per channel."""
        unscaled, config = super().unscaled(latents), self.vae.config
        if config.latents_mean is None or config.latents_std is None:
            return unscaled
        mean, std = (
            torch.tensor(values, device=latents.device).view(1, -1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return unscaled * std + mean
