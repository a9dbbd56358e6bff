"""Soups, adapters in part of the chain, and the ``evaluate`` subcommand on the tiny model."""

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_pipeline
from safetensors.torch import save_file

import run_benchmark
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
            weight = plain.unet.get_submodule(name).base_layer.weight
            weight += (0.05 * value + 0.1 * deltas[1][name]).float()
    torch.testing.assert_close(drawn, pictures(plain, PROMPTS, 4, 2.0), atol=1e-4, rtol=0)
    assert (drawn - before).abs().max() > 1e-2


def test_alpha_scales_the_product(backbone: StableDiffusion, tmp_path: Path):
    state = random_state(backbone, 0)
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8, "unet.r": 4})}
    tensors = {f"unet.{key}": value for key, value in state.items()}
    save_file(tensors, tmp_path / "alpha.safetensors", metadata=metadata)
    found = products(lora_file.read(tmp_path / "alpha.safetensors"))
    for name, value in products(state).items():
        torch.testing.assert_close(found[name], 2 * value, atol=1e-5, rtol=1e-5)


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


def evaluate(folder: Path, out: Path, *arguments: object) -> int:
    words = ["evaluate", "--backbone", folder, "--task", folder / "few.toml", "--out", out]
    return run_benchmark.main([*map(str, words), *map(str, arguments)])


def rows(out: Path, kind: str) -> list[dict]:
    (folder,) = out.glob(f"evaluate-{kind}-*")
    return [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]


def test_sweep_from_the_base_model(tiny_folder, two, tmp_path, capsys):
    assert evaluate(tiny_folder, tmp_path, two[0], "--sweep", 3) == 0
    found = [row for row in rows(tmp_path, "sweep") if row["split"] == "unseen"]
    assert [row["name"] for row in found] == ["base model", "0", "0.5", "1"]
    assert found[1]["drift"] == pytest.approx(0, abs=1e-6) and found[3]["drift"] > 0
    assert found[1]["rewards"] == pytest.approx(found[0]["rewards"])
    assert {"jpeg", "alignment"} <= found[0]["rewards"].keys()
    assert "diversity" in capsys.readouterr().out
    (folder,) = tmp_path.glob("evaluate-sweep-*")
    assert len(list(folder.glob("images/unseen/*/*.png"))) == 4 * 4


def test_a_sweep_between_two_ends_at_each(tiny_folder, two, tmp_path):
    """The ends of the sweep draw what each checkpoint alone draws; the first row is the base."""
    own = ["--prompts", "cat", "dog", "--images", 1]
    assert evaluate(tiny_folder, tmp_path, *two, "--sweep", 2, *own) == 0
    assert evaluate(tiny_folder, tmp_path, *two, *own) == 0
    ends, alone = rows(tmp_path, "sweep"), rows(tmp_path, "checkpoints")
    assert [row["coefficients"] for row in ends] == [[], [1, 0], [0, 1]]
    assert [row["name"] for row in alone] == ["base model", *map(str, two)]
    for one, other in zip(ends, alone, strict=True):
        assert one["rewards"] == pytest.approx(other["rewards"], abs=1e-4)
    assert alone[1]["drift"] != pytest.approx(alone[2]["drift"])


def test_without_a_checkpoint_it_is_the_base_model(tiny_folder, tmp_path):
    assert evaluate(tiny_folder, tmp_path) == 0
    assert [row["name"] for row in rows(tmp_path, "checkpoints")] == ["base model"] * 2


def test_parts_mix_and_own_prompts(tiny_folder, two, tmp_path):
    own = ["--prompts", "cat", "dog", "--images", 1]
    assert evaluate(tiny_folder, tmp_path, two[0], "--parts", 2, *own) == 0
    names = [row["name"] for row in rows(tmp_path, "parts")]
    assert names == ["base model", "first 50%", "last 50%", "whole chain"]
    assert evaluate(tiny_folder, tmp_path, *two, "--mix", 1, 0, *own) == 0
    mixed, whole = rows(tmp_path, "mix")[-1], rows(tmp_path, "parts")[-1]
    assert mixed["rewards"] == pytest.approx(whole["rewards"], abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ONE", "--mix", "1", "2"], "2 coefficients for 1 checkpoints"),
        (["--sweep", "3"], "one or two checkpoints"),
        (["ONE", "--parts", "1"], "at least 2 parts"),
        (["ONE", "--sweep", "3", "--parts", "3"], "one of --mix"),
        (["/nonexistent"], "no LoRA checkpoint here"),
        (["BROKEN"], "not a LoRA checkpoint"),
        (["ONE", "--backbone", "emoji"], "does not fit backbone"),
        (["--prompts", "/nonexistent.txt"], "cannot be read"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, tiny_folder, two, tmp_path, capsys):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no such thing")
    places = {"ONE": str(two[0]), "BROKEN": str(broken)}
    assert evaluate(tiny_folder, tmp_path, *[places.get(a, a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
