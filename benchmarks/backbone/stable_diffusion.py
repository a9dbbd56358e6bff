"""Stable Diffusion 1 and 2: a U-Net that predicts noise, velocity or x0, sampled by DDIM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from diffusers.utils import convert_state_dict_to_diffusers
from torch import Tensor

from benchmarks.api import Condition
from benchmarks.backbone.ddim import DDIM, as_ddim, ddim
from benchmarks.backbone.pipeline import PipelineBackbone, supported


class StableDiffusion(PipelineBackbone):
    """Stable Diffusion with a frozen base and trainable weights in its U-Net.

    The VAE's shift is left out, as the pipeline leaves it out.
    """

    component = "unet"
    pipeline_class = "StableDiffusionPipeline"
    parts: ClassVar = {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
    }
    reading: ClassVar = {"safety_checker": None, "requires_safety_checker": False}
    #: What the U-Net may be given beside latents and timestep: nothing, or the text once more.
    added: ClassVar[tuple[str | None, ...]] = (None, "text")

    def check(self) -> None:
        """The U-Net takes no other input than it is given; the scheduler is one of DDIM's kind."""
        channels = (self.vae.config.latent_channels,)
        supported(
            "unet/config.json",
            self.pipeline.unet.config,
            in_channels=channels,
            out_channels=channels,
            addition_embed_type=self.added,
            class_embed_type=(None,),
            num_class_embeds=(None,),
            encoder_hid_dim_type=(None, "text_proj"),
            time_cond_proj_dim=(None,),
        )
        self.scheduler = as_ddim(self.pipeline.scheduler)

    @property
    def train_timesteps(self) -> int:
        """How many timesteps the scheduler was trained with."""
        return int(self.scheduler.config.num_train_timesteps)

    def sampler(self, steps: int, eta: float = 0.0) -> DDIM:
        """DDIM's sampling steps. Raises UserError for a number that its timesteps do not allow."""
        return ddim(self.scheduler, steps, eta)

    def noised(
        self, latents: Tensor, noise: Tensor, timesteps: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Clean latents brought to ``timesteps``; the noise, velocity or x0 to predict there."""
        steps = torch.tensor(timesteps, device=latents.device)
        noisy: Tensor = self.scheduler.add_noise(latents, noise, steps)
        match self.scheduler.config.prediction_type:
            case "v_prediction":
                return noisy, self.scheduler.get_velocity(latents, noise, steps)
            case "sample":
                return noisy, latents
            case _:
                return noisy, noise

    def conditions(self, prompts: Sequence[str]) -> Condition:
        """The text encoder's hidden states, (B, length, width)."""
        text, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, False)
        return (text,)

    def condition_shapes(self) -> list[tuple[int, ...]]:
        """Of one prompt."""
        length = self.pipeline.text_encoder.config.max_position_embeddings
        return [(length, self.pipeline.unet.config.cross_attention_dim)]

    def lora_names(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """diffusers' own names, older than peft, which its U-Nets are still saved with."""
        named: dict[str, Tensor] = convert_state_dict_to_diffusers(weights)
        return named

    def denoise(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """One pass of the U-Net."""
        (text,) = condition
        output: Tensor = self.denoiser(latents, timesteps, encoder_hidden_states=text).sample
        return output
