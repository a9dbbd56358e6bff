"""NaN and infinity are skipped up to a limit; a cell that fails says why and harms no other."""

import json
import resource
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from test_resume import outcome
from torch import Tensor

import analysis.report
import run_benchmark
from benchmarks import registry
from benchmarks.api import Reward, StepResult, UserError
from benchmarks.compute.ledger import Ledger
from benchmarks.experiments.cells import resolve
from benchmarks.harness import guard as guarding
from benchmarks.harness import loop
from benchmarks.harness.guard import Guard, NotFinite
from benchmarks.optim import AdamW, Optimizer
from benchmarks.records.cell import Cell


def guard(values: list[float]) -> Guard:
    """Over a reward that multiplies the brightness of each picture."""
    factors = torch.tensor(values)
    return Guard(Ledger(), "toy", lambda images, prompts: factors * images.mean((1, 2, 3)))


def test_a_reward_that_is_not_finite_counts_as_average_and_has_no_gradient():
    images = torch.ones(3, 2, 1, 1, requires_grad=True)
    watched = guard([1.0, float("nan"), 3.0])
    values = watched.reward(images * 1, ["a", "b", "c"])
    assert values.tolist() == [1.0, 2.0, 3.0]
    values.sum().backward()
    assert images.grad.flatten(1).tolist() == [[0.5, 0.5], [0.0, 0.0], [1.5, 1.5]]
    assert watched.ledger.skipped == 1 and watched.seen == ["reward 'toy' of prompt 'b' is nan"]


def test_a_gradient_that_is_not_finite_is_left_out():
    def root(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.sum((1, 2, 3)).sqrt()  # infinite slope at 0

    watched = Guard(Ledger(), "root", root)
    start = torch.tensor([0.0, 4.0], requires_grad=True)
    values = watched.reward(start[:, None, None, None] * torch.ones(2, 1, 1, 1), ["black", "grey"])
    values.sum().backward()
    assert start.grad.tolist() == [0.0, 0.25]
    assert watched.seen == ["gradient of reward 'root' of prompt 'black' is inf"]


def test_finite_rewards_pass_unchanged():
    watched, images = guard([1.0, 2.0]), torch.rand(2, 3, 4, 4)
    values = watched.reward(images, ["a", "b"])
    assert torch.equal(values, torch.tensor([1.0, 2.0]) * images.mean((1, 2, 3)))
    assert watched.ledger.totals()["skipped"] == 0


def test_an_update_that_is_not_finite_is_left_out():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = Optimizer(AdamW(lr=0.1), [parameter])
    parameter.grad = torch.tensor([1.0, float("inf")])
    watched, norm = guard([]), optimizer.step()
    assert parameter.tolist() == [1.0, 1.0] and parameter.grad is None
    watched.prompts = ["cat"]
    watched.check(4, StepResult(reward=0.5, loss=0.0, grad_norm=norm))
    assert watched.ledger.skipped == 1
    parameter.grad = torch.ones(2)
    optimizer.step()
    assert parameter.tolist() != [1.0, 1.0]


def test_too_many_name_step_prompt_and_reward():
    watched = guard([float("-inf")])
    result = StepResult(reward=0.0, loss=0.0, grad_norm=1.0)
    for step in range(guarding.LIMIT):
        watched.reward(torch.ones(1, 1, 1, 1), ["cat"])
        watched.check(step, result)
    watched.reward(torch.ones(1, 1, 1, 1), ["dog"])
    with pytest.raises(NotFinite, match=r"step 20: reward 'toy' of prompt 'dog' is -inf; 21 skip"):
        watched.check(guarding.LIMIT, result)


class Broken(Reward):
    """Grey in the first calls, then nothing but NaN."""

    unit, reference, differentiable = "none", "toy", True

    def __init__(self, device: object) -> None:
        pass

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.mean((1, 2, 3)) * float("nan" if torch.is_grad_enabled() else 1)


@pytest.fixture
def arguments(tiny_folder: Path, tmp_path: Path) -> list[str]:
    where = ["--backbone", str(tiny_folder), "--task", str(tiny_folder / "few.toml")]
    small = ["--refl.batch-size", "12", "--refl.sampling-steps", "2", "--refl.earliest", "0"]
    small += ["--refl.latest", "1", "--budget", "steps=4", "--out", str(tmp_path / "runs")]
    return [*where, *small]


def failure(out: Path, method: str) -> dict:
    (path,) = out.glob(f"{method}-*/failed.json")
    return json.loads(path.read_text())


def test_a_reward_of_nan_ends_its_cell(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(registry.rewards.entries, "broken", Broken)
    assert run_benchmark.main([*arguments, "--methods", "refl", "--reward", "broken"]) == 1
    record = failure(tmp_path / "runs", "refl")
    assert (record["type"], record["step"]) == ("NotFinite", 1)
    assert "step 1: reward 'broken' of prompt '" in record["error"]
    errors = capsys.readouterr().err
    assert record["error"] in errors and "1 of 1 cells failed" in errors


@pytest.mark.parametrize("error", [KeyError("k"), AssertionError(), UserError("so"), MemoryError()])
def test_whatever_a_cell_raises_the_others_go_on(error, arguments, tmp_path, monkeypatch, capsys):
    cls = registry.methods.get("refl")

    class Raises(cls):  # type: ignore[misc,valid-type]
        def step(self, step: int) -> StepResult:
            if step == 1:
                raise error
            return super().step(step)

    monkeypatch.setitem(registry.methods.entries, "raises", Raises)
    methods = ["--methods", "raises", "refl", *(a.replace("refl", "raises") for a in arguments)]
    assert run_benchmark.main([*methods, *arguments]) == 1
    record = failure(tmp_path / "runs", "raises")
    assert (record["type"], record["step"]) == (type(error).__name__, 1)
    assert "in step" in record["traceback"] and record["error"]
    assert len(list((tmp_path / "runs").glob("refl-*/done"))) == 1
    assert "raises, seed 0 failed: " in capsys.readouterr().err
    # Another try begins with what did not fail, and clears the failure when it succeeds.
    monkeypatch.setattr(Raises, "step", cls.step)
    assert run_benchmark.main([*methods, *arguments]) == 0
    assert not list((tmp_path / "runs").glob("*/failed.json"))


def test_a_full_disk(arguments, tmp_path, monkeypatch, capsys):
    """Files may not grow beyond 8 kB: the checkpoint fails; with room again, the run goes on."""
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 0.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        code = run_benchmark.main([*arguments, "--methods", "refl"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    errors = capsys.readouterr().err
    assert code == 1 and "refl, seed 0 failed: " in errors and "no report" in errors
    monkeypatch.setattr(analysis.report, "write_report", lambda out: "")
    assert run_benchmark.main([*arguments, "--methods", "refl"]) == 0
    assert len(list((tmp_path / "runs").glob("refl-*/done"))) == 1
    # The end is that of a run that always had room.
    again = [*arguments, "--methods", "refl", "--out", str(tmp_path / "two")]
    assert run_benchmark.main(again) == 0
    assert outcome(tmp_path / "runs") == outcome(tmp_path / "two")


def test_a_cell_that_another_process_finishes_is_not_started_over(tmp_path, monkeypatch):
    """The other process ends after we have looked and before we hold the lock."""
    (spec,) = resolve({"refl": []}, budget="steps=1")
    claim = Cell._claim

    def late(cell: Cell) -> None:
        cell.path.mkdir(parents=True)
        (cell.path / "done").touch()
        claim(cell)

    monkeypatch.setattr(Cell, "_claim", late)
    monkeypatch.delattr(loop, "Run")  # what would start over
    path = loop.Harness(tmp_path, torch.device("cpu")).run(spec)
    assert {p.name for p in path.iterdir()} == {"done", "lock"}
