"""What ``plan`` prints: of methods, of a suite, and of cells from their files."""

import json
from pathlib import Path

import pytest

import run_benchmark
from benchmarks.backbone.checkpointing import KEEPS
from benchmarks.commands import plan
from benchmarks.experiments.cells import announce, resolve
from benchmarks.forecast import dry_run


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less to count."""
    monkeypatch.setattr(dry_run, "STEPS", 2)


def test_methods(tiny_folder: Path, capsys):
    arguments = ["plan", "--methods", "alignprop-full", "ddpo", "--backbone", str(tiny_folder)]
    assert run_benchmark.main([*arguments, "--budget", "nfe=100000", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    full = report["methods"]["alignprop-full"]
    assert full["nfe_per_step"] == 8 * 20 * 2  # the preset: 8 pictures, 20 steps, guidance
    assert full["keep"]["all"]["steps_in_budget"] == 100000 // 320
    flops = [full["keep"][keep]["flops_per_step"] for keep in KEEPS]
    assert flops == sorted(flops) and flops[0] < flops[1] < flops[2]
    assert run_benchmark.main(arguments) == 0
    assert "ddpo" in capsys.readouterr().out


def test_a_model_of_unknown_shape_is_one_clear_line(capsys):
    assert run_benchmark.main(["plan", "--backbone", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert "no shape to plan with" in error and error.count("\n") == 1


def test_a_suites_cells_are_planned_once_for_each_cost(tiny_folder: Path):
    """Arms that differ in reward and seed alone cost the same; ranks are planned apart."""
    options = plan.Options(suite="paper", backbone=str(tiny_folder), only=("full_finetuning",))
    kinds = plan.of_suite(options)
    assert {(one.method, one.rank, one.number) for one in kinds} == {
        ("alignprop", 4, 5),
        ("alignprop", 0, 5),
    }
    assert {one.budget for one in kinds} == {"flops=6e12"}


def test_a_suite_is_planned(tiny_folder: Path, capsys):
    words = ["plan", "--suite", "paper", "--only", "early_late", "--backbone", str(tiny_folder)]
    assert run_benchmark.main(words) == 0
    assert "10 x alignprop, flops=6e12" in capsys.readouterr().out


def test_a_cell_is_planned_from_its_file(tiny_folder: Path, tmp_path: Path, capsys):
    task = str(tiny_folder / "few.toml")
    layers = {"alignprop": [({"batch_size": 4, "micro_batch": 4}, "here")]}
    cells = resolve(layers, backbone=str(tiny_folder), task=task, budget="steps=3")
    announce(cells, tmp_path)
    (path,) = tmp_path.glob("*/cell.json")
    assert run_benchmark.main(["plan", str(path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["methods"].values()
    assert found["images_per_step"] == 4
    assert found["budget"] == {"kind": "steps", "amount": 3.0}
