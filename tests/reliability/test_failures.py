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
from benchmarks.experiments.cells import resolve
from benchmarks.harness import loop
from benchmarks.records.cell import Cell


class Broken(Reward):
    """Grey in the first calls, then nothing but NaN."""

    unit, reference, differentiable = "none", "toy", True

    def __init__(self, device: object) -> None:
        pass

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.mean((1, 2, 3)) * float("nan" if torch.is_grad_enabled() else 1)


@pytest.fixture
def arguments(tiny_folder: Path, tmp_path: Path) -> list[str]:
    where = ["--backbone", str(tiny_folder / "quick.toml"), "--task", str(tiny_folder / "few.toml")]
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


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis.report, "write_report", lambda out: "")


def test_whatever_a_cell_raises_the_others_go_on(
    no_report, arguments, tmp_path, monkeypatch, capsys
):
    errors = {"one": KeyError("k"), "two": AssertionError(), "three": UserError("so")}
    errors["four"] = MemoryError()
    cls = registry.methods.get("refl")

    def raises(error: BaseException) -> type:
        class Raises(cls):  # type: ignore[misc,valid-type]
            def step(self, step: int) -> StepResult:
                if step == 1:
                    raise error
                return super().step(step)

        return Raises

    for name, error in errors.items():
        monkeypatch.setitem(registry.methods.entries, name, raises(error))
    methods = ["--methods", *errors, "refl"]
    for name in errors:
        methods += [a.replace("refl", name) for a in arguments]
    assert run_benchmark.main([*methods, *arguments]) == 1
    said = capsys.readouterr().err
    for name, error in errors.items():
        record = failure(tmp_path / "runs", name)
        assert (record["type"], record["step"]) == (type(error).__name__, 1)
        assert "in step" in record["traceback"] and record["error"]
        assert f"{name}, seed 0 failed: " in said
        # Another try begins with what did not fail, and clears the failure when it succeeds.
        monkeypatch.setattr(registry.methods.get(name), "step", cls.step)
    assert len(list((tmp_path / "runs").glob("refl-*/done"))) == 1
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
