"""FLUX.1: a transformer over packed latents that is told the guidance scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.api import Condition
from benchmarks.backbone.flow import FlowBackbone
from benchmarks.backbone.pipeline import supported
from benchmarks.cut_prompts import cut


class Flux(FlowBackbone):
    """FLUX.1 with a frozen base and trainable weights in its transformer.

    Guidance is an input of the transformer (of FLUX.1-dev; FLUX.1-schnell has none), so there is
    one pass per sample whatever the guidance scale, and the empty prompt is never asked. The
    conditioning is T5's text and CLIP's pooled text. Latents are packed, four pixels to a token,
    only inside of ``denoise``.
    """

    component = "transformer"
    pipeline_class = "FluxPipeline"
    parts: ClassVar = {
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
    }
    #: diffusers, ``train_dreambooth_lora_flux.py``.
    targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )
    #: Of T5, as the pipeline has it.
    text_length: ClassVar[int] = 512

    def check(self) -> None:
        """The transformer takes packed latents and nothing beside them."""
        super().check()
        channels = 4 * self.vae.config.latent_channels
        supported(
            "transformer/config.json",
            self.pipeline.transformer.config,
            patch_size=(1,),
            in_channels=(channels,),
            out_channels=(None, channels),
        )

    @property
    def own_sides(self) -> int:
        """The transformer knows no size; the pipeline does."""
        return int(self.pipeline.default_sample_size)

    def spacing(self, steps: int) -> dict[str, Any]:
        """Evenly down to 1 / steps, before the shift."""
        return {"sigmas": np.linspace(1.0, 1 / steps, steps)}

    def cut(self, prompts: Sequence[str]) -> dict[str, str]:
        """By T5; of CLIP only the pooled text is used."""
        return cut(self.pipeline.tokenizer_2, prompts, self.text_length)

    def conditions(self, prompts: Sequence[str]) -> Condition:
        """Text (B, length, width) and pooled text (B, width)."""
        text, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), None, device=self.device, max_sequence_length=self.text_length
        )
        return text, pooled

    def condition_shapes(self) -> list[tuple[int, ...]]:
        """Of one prompt."""
        config = self.pipeline.transformer.config
        return [(self.text_length, config.joint_attention_dim), (config.pooled_projection_dim,)]

    def _guided(
        self,
        latents: Tensor,
        timestep: float | Sequence[float],
        condition: Condition,
        guidance: float,
    ) -> Tensor:
        timesteps = torch.tensor(timestep, device=self.device).expand(len(latents))
        scale = torch.full((len(latents),), guidance, device=self.device)
        return self._denoised(latents, timesteps, (*condition, scale))

    def denoise(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """One pass of the transformer; without a guidance scale in ``condition`` it is 1."""
        text, pooled, *scale = condition
        height, width = (side // self.patch for side in latents.shape[2:])
        packed = F.pixel_unshuffle(latents, self.patch).flatten(2).transpose(1, 2)
        guidance = scale[0] if scale else torch.ones(len(latents), device=latents.device)
        rows, columns = (torch.arange(n, device=latents.device) for n in (height, width))
        positions = torch.cartesian_prod(torch.arange(1, device=latents.device), rows, columns)
        output: Tensor = self.denoiser(
            packed,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=timesteps.to(latents.dtype) / 1000,
            img_ids=positions.to(latents.dtype),
            txt_ids=torch.zeros(text.shape[1], 3, device=latents.device, dtype=latents.dtype),
            guidance=guidance if self.denoiser.config.guidance_embeds else None,
        ).sample
        return F.pixel_shuffle(output.transpose(1, 2).unflatten(2, (height, width)), self.patch)
