"""Soups mix products, whatever the format of the checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_pipeline
from safetensors.torch import save_file

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


def kohya(state: lora_file.State, alphas: dict[str, float]) -> dict[str, torch.Tensor]:
    """In the layout of kohya's trainer; ``alphas`` by a part of the layer's name."""
    found = {}
    for key, value in state.items():
        name, _, side = key.partition(".lora_")
        down = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[side]
        flat = f"lora_unet_{name.replace('.', '_')}"
        found[f"{flat}.{down}"] = value
        found |= {f"{flat}.alpha": torch.tensor(a) for part, a in alphas.items() if part in name}
    return found


def diffusers_layout(state: lora_file.State) -> dict[str, torch.Tensor]:
    """In the layout that diffusers' training scripts wrote."""
    words = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."}
    return {
        f"unet.{key.replace(old, new)}": value
        for key, value in state.items()
        for old, new in words.items()
        if old in key
    }


def shrunk(state: lora_file.State, part: str, rank: int) -> lora_file.State:
    """With another rank in the layers whose names have this part."""
    return {
        k: (v[:rank] if k.endswith(lora_file.A) else v[:, :rank]).contiguous() if part in k else v
        for k, v in state.items()
    }


@pytest.mark.parametrize(
    ("layout", "rank", "more"),
    [
        ("peft", 4, {}),
        ("peft", 4, {"lora_alpha": 8, "r": 4, "use_rslora": True}),
        ("peft", 2, {"r": 4, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_q": 9}}),
        ("peft", 2, {}),
        ("diffusers", 2, {}),
        ("kohya", 4, {}),
        ("kohya", 2, {"attn": 1.0}),
        # Where alphas differ diffusers takes the most frequent one for all, with a warning.
        ("kohya", 4, {"to_q": 1.0, "to_k": 1.0, "to_v": 2.0, "to_out": 1.0}),
    ],
)
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys")
def test_files_are_read_as_diffusers_loads_them(
    layout: str, rank: int, more: dict, backbone: StableDiffusion, tmp_path: Path
):
    """With and without alphas, and with another rank in some layers."""
    state = shrunk(random_state(backbone, 0), "to_q", rank)
    metadata = {}
    if layout == "kohya":
        tensors = kohya(state, more)
    elif layout == "diffusers":
        tensors = diffusers_layout(state)
    else:
        tensors = {f"unet.{key}": value for key, value in state.items()}
        if more:
            own = {
                f"unet.{k}": v
                for k, v in (
                    more | {"target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
                ).items()
            }
            metadata = {"lora_adapter_metadata": json.dumps(own)}
    save_file(tensors, tmp_path / "lora.safetensors", metadata=metadata)
    found = products(lora_file.read(tmp_path / "lora.safetensors"))
    pipeline = tiny_pipeline()
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    for name, product in found.items():
        layer = pipeline.unet.get_submodule(name)
        torch.testing.assert_close(product.float(), layer.get_delta_weight("default_0"))
