"""Evaluation draws with fixed noise, and with adapters in part of the sampling steps."""

import torch
from conftest import tiny_pipeline

from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import Ledger
from benchmarks.harness.evaluate import pictures

PROMPTS = ["cat", "dog"]


def test_adapters_in_part_of_the_chain(backbone: StableDiffusion):
    def draw(*part: float) -> torch.Tensor:
        return pictures(backbone, PROMPTS, 4, 2.0, part=part)

    whole, early, late, none = draw(0, 1), draw(0, 0.5), draw(0.5, 1), draw(0, 0)
    base = pictures(StableDiffusion(tiny_pipeline(), Ledger()), PROMPTS, 4, 2.0)
    torch.testing.assert_close(none, base)
    torch.testing.assert_close(draw(0, 1), whole)  # switched on again afterwards
    different = [whole, early, late, none]
    for i, one in enumerate(different):
        assert all((one - other).abs().max() > 1e-3 for other in different[:i])
