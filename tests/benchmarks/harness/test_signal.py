"""What the loop adds to a reward: its scale, the placebo, and updates that ask nothing."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import registry
from benchmarks.api import Reward
from benchmarks.experiments.cells import resolve
from benchmarks.harness.loop import Harness


class Redness(Reward):
    """Ten times the red channel, and what it is shown."""

    unit, reference, differentiable = "red", "toy", True
    shown: list[Tensor]

    def __init__(self, device: object) -> None:
        type(self).shown = []

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self.shown.append(images.detach())
        return 10 * images[:, 0].mean((1, 2))


@pytest.fixture
def redness(monkeypatch: pytest.MonkeyPatch) -> type[Redness]:
    monkeypatch.setitem(registry.rewards.entries, "redness", Redness)
    return Redness


def cells(tiny_folder: Path, method: str, budget: str, values: dict, **more) -> list:
    place = {"backbone": str(tiny_folder / "quick.toml"), "task": str(tiny_folder / "few.toml")}
    layers = {method: [(values, "test")]}
    return resolve(layers, reward="redness", held_out=(), budget=budget, **place, **more)


REFL = {"batch_size": 2, "micro_batch": 2, "sampling_steps": 2, "earliest": 0, "latest": 1}
RWR = {
    "samples_per_round": 8,
    "samples_per_prompt": 4,
    "updates_per_round": 3,
    "batch_size": 4,
    "micro_batch": 4,
    "sampling_steps": 2,
}


def lines(path: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (path / f"{name}.jsonl").read_text().splitlines()]


def test_the_scale_is_that_of_the_base_models_pictures(redness, tiny_folder, tmp_path):
    (spec,) = cells(tiny_folder, "refl", "steps=2", REFL)
    path = Harness(tmp_path, torch.device("cpu")).run(spec)
    recorded = json.loads((path / "normalisers.json").read_text())["redness"]
    base = next(line for line in lines(path, "evals") if line["split"] == "train")
    values = torch.tensor([image["rewards"]["redness"] for image in base["per_image"]]).double()
    assert recorded["mean"] == pytest.approx(float(values.mean()), rel=1e-5)
    assert recorded["deviation"] == pytest.approx(float(values.std(correction=0)), rel=1e-3)


def test_a_placebo_learns_elsewhere_at_the_same_cost_and_is_another_cell(
    redness, tiny_folder, tmp_path
):
    real, placebo = (
        cells(tiny_folder, "refl", "steps=3", REFL, placebo=placebo)[0] for placebo in (False, True)
    )
    assert "placebo" not in real.description() and placebo.description()["placebo"] is True
    paths = [Harness(tmp_path, torch.device("cpu")).run(spec) for spec in (real, placebo)]
    steps = [lines(path, "steps") for path in paths]
    assert [step["flops"] for step in steps[0]] == [step["flops"] for step in steps[1]]
    assert [step["loss"] for step in steps[0]] != [step["loss"] for step in steps[1]]
    assert all("redness" in line["rewards"] for line in lines(paths[1], "evals"))


def test_updates_that_ask_the_reward_nothing_still_fit_a_budget_of_queries(
    redness, tiny_folder, tmp_path
):
    (spec,) = cells(tiny_folder, "rwr", "queries=16", RWR)
    path = Harness(tmp_path, torch.device("cpu")).run(spec)
    assert len(lines(path, "steps")) == 6
    ends = {line["fraction"]: line["step"] for line in lines(path, "evals")}
    assert ends == {0.0: 0, 1 / 16: 0, 1 / 8: 0, 1 / 4: 0, 1 / 2: 3, 1.0: 6}
