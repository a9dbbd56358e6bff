"""The embedded model's training, from sprites to a pipeline, in a few steps of each stage."""

import sys

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel

from benchmarks.emoji import build, data, pretrain, vision


@pytest.mark.slow
def test_every_stage_runs_and_resumes(tmp_path, monkeypatch):
    work, weights = tmp_path / "work", tmp_path / "weights"
    work.mkdir()
    side = data.SPRITE_SIZE
    shape = (len(data.ANIMALS), 1, side, side, 4)
    rasters = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    np.savez(work / "sprites.npz", rasters=rasters)
    monkeypatch.setattr(pretrain, "POOL", 200)
    monkeypatch.setattr(pretrain, "STEPS", dict.fromkeys(pretrain.STEPS, 2))
    monkeypatch.setattr(build, "WEIGHTS", weights)
    command = ["pretrain", "--work", str(work), "--threads", str(torch.get_num_threads())]

    monkeypatch.setattr(sys, "argv", [*command, "--stages", "scenes", "clip"])
    pretrain.main()
    clip = (work / "clip" / "model.safetensors").read_bytes()
    monkeypatch.setattr(sys, "argv", command)  # goes on after what is finished
    pretrain.main()

    assert (work / "clip" / "model.safetensors").read_bytes() == clip
    assert all((work / f"{stage}.done").exists() for stage in pretrain.RUN)
    pipeline = StableDiffusionPipeline.from_pretrained(weights, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    (picture,) = pipeline("two foxes", num_inference_steps=2).images
    assert picture.size == (data.SIZE, data.SIZE)
    vision.load(vision.Judge(), weights / "judge.safetensors")
    vision.load(vision.Counter(), weights / "counter.safetensors")
    CLIPModel.from_pretrained(weights / "clip")
