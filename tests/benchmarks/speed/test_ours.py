"""Our contenders do the passes that were asked for."""

import pytest
import torch
from conftest import tiny_pipeline

from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import Ledger
from benchmarks.speed.ours import Brightness, Ours

BATCH, STEPS = 2, 4


@pytest.fixture
def ours() -> Ours:
    backbone = StableDiffusion(tiny_pipeline(), Ledger())
    return Ours(backbone, batch=BATCH, steps=STEPS, guidance=2.5)


@pytest.mark.parametrize("k", [1, 3])
def test_alignprop_goes_back_through_the_last_steps(ours: Ours, k: int):
    ours.alignprop(k, "all")()
    found = ours.backbone.ledger.totals()
    assert (found["nfe"], found["denoiser_backward"]) == (2 * BATCH * STEPS, 2 * BATCH * k)
    assert (found["denoiser_recompute"], found["images"]) == (0, BATCH)
    assert (found["reward_queries"], found["reward_gradients"]) == (BATCH, BATCH)
    ours.alignprop(k, "latents")()
    assert ours.backbone.ledger.totals()["denoiser_recompute"] == 2 * BATCH * k


def test_ddpo_learns_from_scored_steps(ours: Ours):
    ours.ddpo("all")()
    found, scored = ours.backbone.ledger.totals(), len(ours.backbone.sampler(STEPS, 1.0).scored)
    assert (found["nfe"], found["denoiser_backward"]) == (2 * BATCH * STEPS, 2 * BATCH * scored)
    assert (found["reward_queries"], found["reward_gradients"]) == (BATCH, 0)


def test_brightness_is_the_mean_pixel():
    images = torch.tensor([0.25, 1.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    assert Brightness()(images, ["a", "b"]).tolist() == [0.25, 1.0]
