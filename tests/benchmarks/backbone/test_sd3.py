"""Stable Diffusion 3's own conditions and limits."""

import pytest
import torch
from tiny_families import PROMPTS, drawn, tiny_sd3

from benchmarks.api import UserError
from benchmarks.backbone.sd3 import StableDiffusion3
from benchmarks.compute.ledger import Ledger
from benchmarks.streams import Streams


def test_without_t5_its_text_is_zeros_as_the_pipelines(compared):
    ours, theirs = tiny_sd3(), tiny_sd3()
    for pipeline in (ours, theirs):
        pipeline.register_modules(text_encoder_3=None, tokenizer_3=None)
    model = StableDiffusion3(ours, Ledger())
    text, _ = model.encode(PROMPTS)
    assert text.shape == (2, 16 + 256, 16) and text[:, 16:].abs().max() == 0
    noise = Streams(0).normal("noise", 0, range(2), model.latent_shape)
    final = model.sample(model.sampler(2), PROMPTS, noise, guidance=3.0).final
    compared("pictures", model.decode(final), drawn(theirs, noise, 2, 3.0), 1e-5)


def test_pictures_are_not_larger_than_its_positions():
    with pytest.raises(UserError, match="20 x 8 latents are larger than the transformer's posit"):
        StableDiffusion3(tiny_sd3(), Ledger(), resolution=(40, 16))
    with pytest.raises(UserError, match="multiples of 4"):
        StableDiffusion3(tiny_sd3(), Ledger(), resolution=(18, 16))


def test_matrices_are_where_flow_grpo_has_them():
    """Not on the second attention of SD3.5's blocks, nor where text is not handed on."""
    model = StableDiffusion3(tiny_sd3(), Ledger())
    trained = {n for n, p in model.denoiser.named_parameters() if p.requires_grad}
    layers = {name.split(".lora_")[0] for name in trained}
    assert len(layers) == 8 + 7 and not any("attn2" in layer for layer in layers)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_another_scheduler_or_transformer_is_refused():
    pipeline = tiny_sd3()
    pipeline.transformer.register_to_config(in_channels=8)
    with pytest.raises(UserError, match="in_channels is 8; supported: 4"):
        StableDiffusion3(pipeline, Ledger())
