"""Stable Diffusion as diffusers' own pipeline has it, or refused."""

from typing import Any

import diffusers
import pytest
import torch
from conftest import tiny_pipeline
from diffusers import DDIMScheduler

from benchmarks.api import UserError
from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import Ledger
from benchmarks.streams import Streams

PROMPTS = ["a cat", "a dog that is longer than the text encoder can take in"]


def rescheduled(name: str = "DDIMScheduler", **changes: Any) -> Any:
    """The tiny pipeline with another scheduler, as a folder would have it."""
    pipeline = tiny_pipeline()
    config = dict(pipeline.scheduler.config) | changes
    scheduler = getattr(diffusers, name).from_config(config)
    parts = dict(pipeline.components) | {"scheduler": scheduler}
    return diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)


def draws_the_same(ours: Any, theirs: Any, compared, steps: int = 4) -> None:
    """Pictures of two of the same pipelines, the one of them sampled by diffusers' DDIM."""
    model = StableDiffusion(ours, Ledger())
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    noise = Streams(0).normal("noise", 0, range(2), model.latent_shape)
    options = {"latents": noise, "output_type": "pt", "guidance_scale": 2.5}
    expected = theirs(PROMPTS, num_inference_steps=steps, **options).images
    found = model.decode(model.sample(model.sampler(steps), PROMPTS, noise, guidance=2.5).final)
    compared("pictures", found, expected, 1e-4)


def test_untrained_it_draws_the_pictures_of_the_pipeline(compared):
    draws_the_same(tiny_pipeline(), tiny_pipeline(), compared)


ALIKE = [
    {"prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "prediction_type": "sample"},
    {"steps_offset": 0, "set_alpha_to_one": True},  # the pipeline changes the offset to 1
    {"clip_sample": True},  # the pipeline switches it off
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500},
    {"name": "PNDMScheduler"},
    {"name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
    {"name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
]


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
@pytest.mark.parametrize("changes", ALIKE, ids=str)
def test_options_of_the_scheduler_mean_what_they_mean_to_diffusers(changes: dict, compared):
    theirs = rescheduled(**changes)
    if changes.get("name"):  # schedulers that know no clipping do not clip
        theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=False)
    draws_the_same(rescheduled(**changes), theirs, compared)


def test_height_and_width_may_differ(compared):
    ours, theirs = tiny_pipeline(), tiny_pipeline()
    for pipeline in (ours, theirs):
        pipeline.unet.register_to_config(sample_size=[8, 12])
    theirs = diffusers.StableDiffusionPipeline(**theirs.components, requires_safety_checker=False)
    draws_the_same(ours, theirs, compared)
    chosen = StableDiffusion(tiny_pipeline(), Ledger(), resolution=(24, 16))
    assert chosen.latent_shape == (4, 12, 8)


def test_a_shift_of_the_vae_is_what_the_pipeline_makes_of_it(compared):
    ours, theirs = tiny_pipeline(), tiny_pipeline()
    for pipeline in (ours, theirs):
        pipeline.vae.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    draws_the_same(ours, theirs, compared)


REFUSED = [
    ("unet", {"time_cond_proj_dim": 8}, "time_cond_proj_dim is 8; supported: null"),
    ("unet", {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
    ("unet", {"addition_embed_type": "image"}, "supported: null or text"),
    ("unet", {"out_channels": 8}, "out_channels is 8; supported: 4"),
    ("unet", {"sample_size": None}, "sample_size is None; it must be a number or two"),
    ("scheduler", {"prediction_type": "banana"}, "supported: epsilon or v_prediction or sample"),
    ("scheduler", {"timestep_spacing": "random"}, "timestep_spacing is 'random'"),
    ("scheduler", {"thresholding": True}, "thresholding is True; supported: False"),
    ("scheduler", {"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
    ("scheduler", {"use_flow_sigmas": True}, "use_flow_sigmas is True"),
]


@pytest.mark.parametrize(("part", "changes", "message"), REFUSED)
def test_what_would_be_drawn_otherwise_is_refused(part: str, changes: dict, message: str):
    pipeline = tiny_pipeline()
    getattr(pipeline, part).register_to_config(**changes)
    with pytest.raises(UserError, match=message):
        StableDiffusion(pipeline, Ledger())


def test_latents_are_not_clipped_as_pixels_are():
    pipeline = tiny_pipeline()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=True)
    with pytest.raises(UserError, match="clip_sample is True; supported: False"):
        StableDiffusion(pipeline, Ledger())


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "LCMScheduler"]
)
def test_schedulers_of_another_kind_are_refused(name: str):
    pipeline = tiny_pipeline()
    pipeline.scheduler = getattr(diffusers, name)()
    with pytest.raises(UserError, match=f"the scheduler is a {name}; a U-Net is sampled by DDIM"):
        StableDiffusion(pipeline, Ledger())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
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
    expected = {"epsilon": noise, "v_prediction": velocity, "sample": latents}
    compared("target", target, expected[prediction], 1e-4)
