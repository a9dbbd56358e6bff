"""Stable Diffusion 1 and 2: a U-Net that predicts noise or velocity, sampled by DDIM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from benchmarks.api import Condition, UserError
from benchmarks.backbone.base import BaseBackbone
from benchmarks.backbone.ddim import DDIM, ddim
from benchmarks.compute.ledger import Ledger


class StableDiffusion(BaseBackbone):
    """Stable Diffusion with a frozen base and trainable weights in its U-Net."""

    component = "unet"

    def __init__(self, pipeline: StableDiffusionPipeline, ledger: Ledger, **options: Any) -> None:
        self.tokenizer, self.text_encoder = pipeline.tokenizer, pipeline.text_encoder
        self.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        self.vae = pipeline.vae
        config = pipeline.unet.config
        super().__init__(
            ledger,
            denoiser=pipeline.unet,
            autoencoder=pipeline.vae,
            others=[pipeline.text_encoder],
            latent_shape=(config.in_channels, config.sample_size, config.sample_size),
            **options,
        )

    @classmethod
    def read(cls, place: str, revision: str | None, dtype: torch.dtype) -> StableDiffusionPipeline:
        """The pipeline in a diffusers folder or of a hub id; only safetensors are read.

        Raises UserError if there is none.
        """
        try:
            return StableDiffusionPipeline.from_pretrained(
                place,
                revision=revision,
                dtype=dtype,
                safety_checker=None,
                requires_safety_checker=False,
                use_safetensors=True,
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"--backbone {place}: not a Stable Diffusion folder with safetensors weights, nor "
                f"a hub model that can be reached ({str(error).splitlines()[0]})"
            ) from error

    @property
    def train_timesteps(self) -> int:
        """How many timesteps the scheduler was trained with."""
        return int(self.scheduler.config.num_train_timesteps)

    def sampler(self, steps: int, eta: float = 0.0) -> DDIM:
        """DDIM's sampling steps. Raises UserError for more than there are timesteps."""
        return ddim(self.scheduler, steps, eta)

    def noised(
        self, latents: Tensor, noise: Tensor, timesteps: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Clean latents brought to ``timesteps``, and the noise or velocity to predict there."""
        steps = torch.tensor(timesteps, device=latents.device)
        noisy = self.scheduler.add_noise(latents, noise, steps)
        if self.scheduler.config.prediction_type == "v_prediction":
            return noisy, self.scheduler.get_velocity(latents, noise, steps)
        return noisy, noise

    def tokenizers(self) -> list[Any]:
        """CLIP's."""
        return [self.tokenizer]

    def conditions(self, prompts: Sequence[str]) -> Condition:
        """The text encoder's hidden states, (B, length, width)."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        return (self.text_encoder(tokens.input_ids.to(self.device))[0],)

    def denoise(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """One pass of the U-Net."""
        (text,) = condition
        output: Tensor = self.denoiser(latents, timesteps, encoder_hidden_states=text).sample
        return output

    def pixels(self, latents: Tensor) -> Tensor:
        """One pass of the decoder."""
        latents = latents / self.vae.config.scaling_factor
        latents = latents + (getattr(self.vae.config, "shift_factor", None) or 0.0)
        decoded: Tensor = self.vae.decode(latents.to(self.vae.dtype)).sample
        return decoded
