"""Soups mix products, whatever the format of the checkpoints."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_pipeline

from benchmarks.backbone import lora_file
from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import Ledger
from benchmarks.experiments import soup
from benchmarks.harness.evaluate import pictures

PROMPTS = ["cat", "dog"]


def random_state(backbone: StableDiffusion, seed: int) -> lora_file.State:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=generator) for k, v in backbone.weights().items()}


def products(state: lora_file.State) -> dict[str, torch.Tensor]:
    names = [k.removesuffix(lora_file.A) for k in state if k.endswith(lora_file.A)]
    return {n: state[n + lora_file.B].double() @ state[n + lora_file.A].double() for n in names}


@pytest.fixture
def two(backbone: StableDiffusion, tmp_path: Path) -> list[Path]:
    """Two checkpoints with every matrix non-zero."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        backbone.save_weights(folder, random_state(backbone, seed))
    return folders


def test_reading_gives_what_was_saved(backbone: StableDiffusion, two: list[Path]):
    expected = random_state(backbone, 0)
    found = lora_file.read(two[0])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_a_soup_mixes_the_products(backbone: StableDiffusion, two: list[Path]):
    one, other = map(lora_file.read, two)
    for size in (None, 11):
        mixed = products(soup.mix([one, other], [0.3, -0.7], size))
        for name, value in products(one).items():
            expected = 0.3 * value - 0.7 * products(other)[name]
            torch.testing.assert_close(mixed[name], expected, atol=1e-5, rtol=1e-5)
    factors = {k: 0.5 * one[k] + 0.5 * other[k] for k in one}
    name = next(iter(products(one)))
    half = products(soup.mix([one, other], [0.5, 0.5]))[name]
    assert (products(factors)[name] - half).abs().max() > 0.1  # what must not be done


def test_a_soup_draws_what_the_mixed_weight_matrices_draw(two: list[Path]):
    states = list(map(lora_file.read, two))
    model = StableDiffusion(tiny_pipeline(), Ledger(), rank=8)
    model.load_weights(soup.mix(states, [0.05, 0.1]))
    drawn = pictures(model, PROMPTS, 4, 2.0)
    plain = StableDiffusion(tiny_pipeline(), Ledger())
    before = pictures(plain, PROMPTS, 4, 2.0)
    deltas = [products(state) for state in states]
    with torch.no_grad():
        for name, value in deltas[0].items():
            weight = plain.denoiser.get_submodule(name).base_layer.weight
            weight += (0.05 * value + 0.1 * deltas[1][name]).float()
    torch.testing.assert_close(drawn, pictures(plain, PROMPTS, 4, 2.0), atol=1e-4, rtol=0)
    assert (drawn - before).abs().max() > 1e-2
