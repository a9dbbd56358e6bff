"""The loop around a method: budgets, evaluation times, the base model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from two_methods import records, run

from benchmarks.compute.ledger import Ledger
from benchmarks.experiments import cells
from benchmarks.harness import loop
from methods.alignprop import AlignProp
from methods.ddpo import DDPO


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    assert run(tiny_folder, out, "--budget", "flops=6e8") == 0
    return out


def test_budget_is_spent_and_never_exceeded(finished: Path):
    for method in ("alignprop", "ddpo"):
        steps = records(finished, method, "steps")
        assert 0 < steps[-1]["flops"] <= 6e8
        assert steps[-1]["flops"] + 2 * max(s["flops"] / s["step"] for s in steps) > 6e8
        for e in records(finished, method, "evals"):
            assert e["flops"] <= e["fraction"] * 6e8


def test_another_evaluation_schedule_trains_to_the_same_weights(
    finished: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cells, "fractions", lambda factor: (0.0, 0.3, 1.0))
    assert run(tiny_folder, tmp_path, "--budget", "flops=6e8") == 0
    for method in ("alignprop", "ddpo"):
        assert {e["fraction"] for e in records(tmp_path, method, "evals")} == {0.0, 0.3, 1.0}
        (one,), (other,) = (out.glob(f"{method}-*/*.safetensors") for out in (finished, tmp_path))
        expected, found = load_file(one), load_file(other)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[k], found[k]) for k in expected)


def test_a_first_step_that_fails_fails_before_any_evaluation(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def failing(*_: object) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(AlignProp, "step", failing)
    monkeypatch.setattr(DDPO, "step", failing)
    monkeypatch.setattr(loop, "evaluate", lambda *_: pytest.fail("evaluated first"))
    monkeypatch.setattr(loop, "choose", lambda *_: "latents")
    assert run(tiny_folder, tmp_path, "--budget", "flops=6e8") == 1
    assert "alignprop, seed 0 failed: no memory left" in capsys.readouterr().err


def test_a_first_step_that_costs_nothing_is_not_the_base_model(
    finished: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spent = Ledger.spent
    monkeypatch.setattr(
        Ledger, "spent", lambda self, kind: spent(self, kind) * (self.optimizer_steps > 1)
    )
    assert run(tiny_folder, tmp_path, "--budget", "flops=6e8") == 0
    for method in ("alignprop", "ddpo"):
        found, expected = (
            [e for e in records(out, method, "evals") if e["fraction"] == 0.0]
            for out in (tmp_path, finished)
        )
        assert found == expected and {e["step"] for e in found} == {0}


@pytest.mark.parametrize("budget", ["steps=2", "queries=8", "nfe=64", "seconds=2"])
def test_every_kind_of_budget(tiny_folder: Path, tmp_path: Path, budget: str):
    assert run(tiny_folder, tmp_path, "--budget", budget) == 0
    kind, amount = budget.split("=")
    if kind == "steps":
        assert len(records(tmp_path, "ddpo", "steps")) == int(amount)
    if kind == "queries":
        assert records(tmp_path, "ddpo", "steps")[-1]["reward_queries"] == int(amount)
