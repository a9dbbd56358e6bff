"""What SDXL adds to Stable Diffusion."""

import pytest
import torch
from tiny_families import PROMPTS, drawn, tiny_sdxl

from benchmarks.api import UserError
from benchmarks.backbone.sdxl import StableDiffusionXL
from benchmarks.compute.ledger import Ledger
from benchmarks.streams import Streams


def test_time_ids_are_size_crop_and_size_again():
    model = StableDiffusionXL(tiny_sdxl(), Ledger(), resolution=(16, 24))
    _, _, ids = model.encode(PROMPTS)
    assert ids.tolist() == 2 * [[16, 24, 0, 0, 16, 24]]


@pytest.mark.parametrize("zeros", [True, False])
def test_the_empty_prompt_is_nothing_or_its_text_as_the_pipeline_says(zeros: bool, compared):
    ours, theirs = tiny_sdxl(), tiny_sdxl()
    for pipeline in (ours, theirs):
        pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    model = StableDiffusionXL(ours, Ledger())
    text, pooled, _ = model.encode([""])
    assert (text.abs().max() == 0) == (pooled.abs().max() == 0) == zeros
    noise = Streams(0).normal("noise", 0, range(2), model.latent_shape)
    final = model.sample(model.sampler(2), PROMPTS, noise, guidance=3.0).final
    compared("pictures", model.decode(final), drawn(theirs, noise, 2, 3.0), 1e-5)


def test_its_autoencoder_decodes_in_single_precision_where_half_overflows():
    half = tiny_sdxl().to(torch.float16)
    model = StableDiffusionXL(half, Ledger())
    assert model.dtype == torch.float16 and model.vae.dtype == torch.float32
    latents = torch.full((1, 4, 8, 8), 3.0, requires_grad=True)
    images = model.decode(latents)
    images.sum().backward()
    assert images.dtype == torch.float32 and latents.grad.isfinite().all()
    fixed = tiny_sdxl().to(torch.float16)
    fixed.vae.register_to_config(force_upcast=False)
    assert StableDiffusionXL(fixed, Ledger()).vae.dtype == torch.float16
    wide = StableDiffusionXL(tiny_sdxl().to(torch.bfloat16), Ledger())
    assert wide.vae.dtype == torch.bfloat16


def test_latents_with_a_mean_and_a_deviation_per_channel(compared):
    ours, theirs = tiny_sdxl(), tiny_sdxl()
    for pipeline in (ours, theirs):
        means = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.5]}
        pipeline.vae.register_to_config(**means)
    model = StableDiffusionXL(ours, Ledger())
    noise = Streams(0).normal("noise", 0, range(2), model.latent_shape)
    final = model.sample(model.sampler(2), PROMPTS, noise, guidance=3.0).final
    compared("pictures", model.decode(final), drawn(theirs, noise, 2, 3.0), 1e-5)


def test_a_unet_that_wants_something_else_is_refused():
    pipeline = tiny_sdxl()
    pipeline.unet.register_to_config(addition_embed_type="text")
    with pytest.raises(UserError, match="addition_embed_type is 'text'; supported: text_time"):
        StableDiffusionXL(pipeline, Ledger())
