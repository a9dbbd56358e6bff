"""Stable Diffusion 3 and 3.5: a transformer over pictures and text, three text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from benchmarks.api import Condition, UserError
from benchmarks.backbone.flow import FlowBackbone
from benchmarks.backbone.pipeline import supported
from benchmarks.cut_prompts import cut


class StableDiffusion3(FlowBackbone):
    """Stable Diffusion 3 with a frozen base and trainable weights in its transformer.

    The conditioning is the text, CLIP's and then T5's, and CLIP's pooled text.
    """

    component = "transformer"
    pipeline_class = "StableDiffusion3Pipeline"
    parts: ClassVar = {
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    }
    optional = ("text_encoder_3",)
    #: Flow-GRPO, ``train_sd3.py``.
    targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )
    #: Of T5, as the pipeline has it.
    text_length: ClassVar[int] = 256

    def check(self) -> None:
        """The transformer takes latents as the autoencoder makes them."""
        super().check()
        channels, config = (self.vae.config.latent_channels,), self.pipeline.transformer.config
        supported(
            "transformer/config.json",
            config,
            patch_size=(self.patch,),
            in_channels=channels,
            out_channels=channels,
        )

    def sides(self, resolution: Sequence[int] | None) -> tuple[int, int]:
        """Height and width of latents. Raises UserError for pictures that cannot be."""
        height, width = super().sides(resolution)
        most = self.patch * self.pipeline.transformer.config.pos_embed_max_size
        if max(height, width) > most:
            raise UserError(
                f"pictures of {height} x {width} latents are larger than the transformer's "
                f"positions, {most} x {most}; give the backbone a smaller resolution"
            )
        return height, width

    def cut(self, prompts: Sequence[str]) -> dict[str, str]:
        """T5 reads on where CLIP stops."""
        t5 = self.pipeline.tokenizer_3
        return cut(t5, prompts, self.text_length) if t5 else super().cut(prompts)

    def conditions(self, prompts: Sequence[str]) -> Condition:
        """Text (B, length, width) and pooled text (B, width)."""
        text, _, pooled, _ = self.pipeline.encode_prompt(
            *(list(prompts), None, None),
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
        )
        return text, pooled

    def condition_shapes(self) -> list[tuple[int, ...]]:
        """Of one prompt."""
        config = self.pipeline.transformer.config
        length = self.pipeline.text_encoder.config.max_position_embeddings + self.text_length
        return [(length, config.joint_attention_dim), (config.pooled_projection_dim,)]

    def denoise(self, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """One pass of the transformer."""
        text, pooled = condition
        output: Tensor = self.denoiser(
            latents, encoder_hidden_states=text, pooled_projections=pooled, timestep=timesteps
        ).sample
        return output
