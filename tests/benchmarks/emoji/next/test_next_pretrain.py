"""The embedded model's training, from drawings to a pipeline, in a few steps of each stage."""

import sys

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel

from benchmarks.emoji.next import data, pretrain, quality, vision


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder with made-up art, two hundred scenes and two steps of everything."""
    work = tmp_path / "work"
    work.mkdir()
    animal, style = np.divmod(np.arange(len(data.ANIMALS) * len(data.STYLES)), len(data.STYLES))
    shape = (len(animal), data.SPRITE_SIZE, data.SPRITE_SIZE, 4)
    rasters = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    np.savez(work / "art.npz", rasters=rasters, animal=animal, style=style, pose=animal % 2)
    monkeypatch.setattr(pretrain, "POOL", 200)
    monkeypatch.setattr(pretrain, "STEPS", dict.fromkeys(pretrain.STEPS, 2))
    monkeypatch.setattr(pretrain, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(pretrain, "TRAINED", tmp_path / "trained")

    def run(*options, work=work):
        threads = str(torch.get_num_threads())
        command = ["pretrain", "--work", str(work), "--threads", threads, *options]
        monkeypatch.setattr(sys, "argv", command)
        pretrain.main()
        return work

    return run


def test_density_maps_sum_to_the_count():
    centers = np.array([[12.0, 12.0], [52.0, 44.0]])
    density = pretrain.density_map(centers)
    assert density.sum() == pytest.approx(2)
    assert density[3, 3] > 0.1 and density[11, 13] > 0.1  # rows are y


def test_timesteps_cover_the_range_and_favour_noise():
    timesteps = pretrain.spread_timesteps(1000, np.random.default_rng(0))
    assert timesteps.min() >= 0 and timesteps.max() <= 999
    assert float((timesteps >= 500).float().mean()) == pytest.approx(0.75, abs=0.01)


def test_an_unfinished_training_goes_on_from_exported_weights(small, tmp_path, monkeypatch):
    work = small("--stages", "scenes", "latents", "vae")
    output = pretrain.output(work, "vae")
    output.unlink()  # as if only a checkpoint were there
    small("--export")
    assert pretrain.steps_of(tmp_path / "trained" / "vae.average.safetensors") == 2
    monkeypatch.setattr(pretrain, "STEPS", {"vae": 3})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("art.npz",):
        (elsewhere / name).write_bytes((work / name).read_bytes())
    before = vision.read(tmp_path / "trained" / "vae.average.safetensors")
    small("--stages", "scenes", "latents", "vae", work=elsewhere)
    assert (elsewhere / "latents.npy").read_bytes() == (work / "latents.npy").read_bytes()
    after = vision.read(pretrain.output(elsewhere, "vae"))
    name = "decoder.conv_out.weight"
    assert 0 < float((after[name] - before[name]).abs().max()) < 0.01  # one step further


@pytest.mark.slow
def test_every_stage_runs_and_resumes(small, tmp_path):
    work = small("--stages", "scenes", "latents", "vae", "clip")
    clip = pretrain.output(work, "clip").read_bytes()
    small()  # goes on after what is finished

    assert pretrain.output(work, "clip").read_bytes() == clip
    assert all(pretrain.output(work, stage).exists() for stage in pretrain.RUN)
    weights = tmp_path / "weights"
    pipeline = StableDiffusionPipeline.from_pretrained(weights, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    (picture,) = pipeline("two foxes", num_inference_steps=2, guidance_scale=1.0).images
    assert picture.size == (data.SIZE, data.SIZE)
    judge = vision.load(vision.Judge(), weights / "judge.safetensors")
    vision.load(vision.Counter(), weights / "counter.safetensors")
    CLIPModel.from_pretrained(weights / "clip")

    figures = quality.measure_ceilings(work, judge, count=20)
    figures |= quality.measure(quality.Model(work), judge, steps=1, guidance=1.0, repeats=1)
    shares = [figures[f"style_share_{style}"] for style in data.STYLES]
    assert sum(shares) == pytest.approx(1)
    assert {"vae_psnr_db", "top1_unseen", "count_accuracy", "background_accuracy"} <= set(figures)
