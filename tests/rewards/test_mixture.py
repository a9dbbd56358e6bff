"""Mixtures: what their names mean, and that they are normalised by frozen numbers."""

import json
from pathlib import Path

import pytest
import torch

import run_benchmark
from benchmarks import registry
from benchmarks.api import UserError


def pictures(seed: int, count: int = 6) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) ** 2


def make(name: str):
    return registry.rewards.get(name)("cpu")


def test_is_the_weighted_sum_of_standardised_rewards() -> None:
    mixture = make("0.7*jpeg-soft + -2*colourfulness")
    prompts = ["a cat"] * 6
    record = mixture.calibrate(pictures(0), prompts)
    x, expected = pictures(1), 0
    for name, weight in (("jpeg-soft", 0.7), ("colourfulness", -2.0)):
        base = make(name)(pictures(0), prompts)
        expected += weight * (make(name)(x, prompts) - base.mean()) / base.std()
        assert record[name]["mean"] == pytest.approx(base.mean().item(), rel=1e-5)
    torch.testing.assert_close(mixture(x, prompts), expected, rtol=1e-4, atol=1e-5)
    mixture(pictures(2), prompts)  # what it sees later changes nothing
    torch.testing.assert_close(mixture(x, prompts), expected, rtol=1e-4, atol=1e-5)


def test_its_gradient_is_that_of_its_parts() -> None:
    black = registry.rewards.get("0.7*jpeg+0.3*alignment")
    assert not black.differentiable
    assert black.stand_in == "0.7*jpeg-soft+0.3*alignment"
    assert registry.rewards.get(black.stand_in).differentiable
    assert registry.rewards.get("jpeg-incompressibility+alignment").stand_in is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("0.7*jpgg+0.3*alignment", "did you mean 'jpeg'"),
        ("lots*jpeg+0.3*alignment", "'lots\\*jpeg' is not WEIGHT\\*NAME"),
        ("nan*jpeg", "is not WEIGHT"),
        ("0*jpeg+alignment", "is not WEIGHT"),
        ("jpeg+", "is not WEIGHT"),
        ("2*3*jpeg", "is not WEIGHT"),
    ],
)
def test_a_wrong_name_is_explained(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.rewards.get(name)


def test_a_part_that_never_varies_is_refused() -> None:
    with pytest.raises(UserError, match="'jpeg' is the same for all pictures"):
        make("jpeg+colourfulness").calibrate(torch.full((3, 3, 8, 8), 0.5), ["a"] * 3)


def test_a_run_on_a_mixture_with_other_held_out_rewards(tiny_folder: Path, tmp_path: Path) -> None:
    """Base pictures score 0 with deviation 1 per part; the held-out reward is only reported."""
    mixture = "0.5*jpeg+0.5*colourfulness"
    arguments = ["--reward", mixture, "--held-out", "colourfulness", "jpeg-soft"]
    arguments += ["--methods", "alignprop", "ddpo", "--budget", "steps=1"]
    arguments += [
        "--backbone",
        str(tiny_folder),
        "--task",
        str(tiny_folder / "few.toml"),
    ]
    arguments += ["--alignprop.batch-size", "2", "--alignprop.micro-batch", "2"]
    arguments += ["--alignprop.sampling-steps", "4", "--ddpo.sampling-steps", "4"]
    arguments += [
        "--ddpo.samples-per-round",
        "4",
        "--ddpo.samples-per-prompt",
        "2",
        "--ddpo.micro-batch",
        "2",
    ]
    assert run_benchmark.main([*arguments, "--out", str(tmp_path / "runs")]) == 0
    cells = sorted((tmp_path / "runs").glob("*/cell.json"))
    assert len(cells) == 2
    found = []
    for path, trained in zip(cells, ("0.5*jpeg-soft+0.5*colourfulness", mixture), strict=True):
        info = json.loads(path.read_text())
        assert info["train_reward"] == trained
        assert set(info["reported"]) >= {mixture, "colourfulness", "jpeg-soft"}
        assert "alignment" not in info["reported"]
        lines = (path.parent / "evals.jsonl").read_text().splitlines()
        first = next(e for e in map(json.loads, lines) if e["split"] == "train")
        assert first["rewards"][mixture] == pytest.approx(0, abs=1e-4)
        numbers = json.loads((path.parent / "normalisers.json").read_text())
        mean = numbers[mixture]["colourfulness"]["mean"]
        assert mean == pytest.approx(first["rewards"]["colourfulness"], rel=1e-4)
        found.append(numbers)
    assert found[0] == found[1]
