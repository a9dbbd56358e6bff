"""Stable Diffusion as diffusers' own pipeline has it."""

import pytest
import torch
from conftest import tiny_pipeline
from diffusers import DDIMScheduler

from benchmarks.api import UserError
from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import Ledger
from benchmarks.streams import Streams


def test_untrained_it_draws_the_pictures_of_the_pipeline(compared):
    model, pipeline = StableDiffusion(tiny_pipeline(), Ledger()), tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    noise = Streams(0).normal("noise", 0, range(2), model.latent_shape)
    options = {"latents": noise, "output_type": "pt"}
    prompts = ["a cat", "a dog that is longer than the text encoder can take in"]
    expected = pipeline(prompts, num_inference_steps=4, guidance_scale=2.5, **options).images
    found = model.decode(model.sample(model.sampler(4), prompts, noise, guidance=2.5).final)
    assert found.shape == (2, 3, 16, 16)
    compared("pictures", found, expected, 1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noised_latents_and_what_is_to_be_predicted(prediction: str, compared):
    pipeline = tiny_pipeline()
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, prediction_type=prediction
    )
    model = StableDiffusion(pipeline, Ledger())
    assert model.train_timesteps == 1000
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)[[10, 900]].view(2, 1, 1, 1)
    noisy, target = model.noised(latents, noise, [10, 900])
    compared("noisy", noisy, kept.sqrt() * latents + (1 - kept).sqrt() * noise, 1e-4)
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * latents
    compared("target", target, velocity if prediction == "v_prediction" else noise, 1e-4)


def test_the_decoder_takes_latents_out_of_their_scale_and_shift(compared):
    pipeline = tiny_pipeline()
    pipeline.vae.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    model, plain = StableDiffusion(pipeline, Ledger()), tiny_pipeline().vae
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain.decode(2 * latents + 0.25).sample
        compared("decoded", model.pixels(latents), expected, 1e-5)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a Stable Diffusion folder with safetensors"):
        StableDiffusion.read(str(tmp_path), None, torch.float32)
