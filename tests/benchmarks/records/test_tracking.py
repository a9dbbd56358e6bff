"""Trackers get what the records hold; they are no part of a cell and cannot end it."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate.tracking
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import analysis.report
import run_benchmark
from benchmarks.records.cell import Cell

DESCRIPTION = {"method": "refl", "reward": "jpeg", "seed": 0}


def test_tensorboard_holds_the_records_and_pictures(tiny_folder: Path, tmp_path, monkeypatch):
    monkeypatch.setattr(analysis.report, "write_report", lambda out: "")
    arguments = [
        "--methods",
        "refl",
        "--backbone",
        str(tiny_folder / "quick.toml"),
        "--out",
        str(tmp_path),
    ]
    arguments += ["--task", str(tiny_folder / "few.toml"), "--budget", "steps=2"]
    arguments += ["--refl.sampling-steps", "2", "--refl.earliest", "0", "--refl.latest", "1"]
    assert run_benchmark.main([*arguments, "--track", "tensorboard"]) == 0
    (cell,) = (path.parent for path in tmp_path.glob("*/done"))
    events = EventAccumulator(str(cell)).Reload()
    for line in (cell / "steps.jsonl").read_text().splitlines():
        step = json.loads(line)
        (found,) = [e.value for e in events.Scalars("steps/reward") if e.step == step["step"]]
        assert found == pytest.approx(step["reward"])
    evals = [json.loads(line) for line in (cell / "evals.jsonl").read_text().splitlines()]
    last = [e for e in evals if e["split"] == "unseen"][-1]
    assert events.Scalars("unseen/jpeg")[-1].value == pytest.approx(last["rewards"]["jpeg"])
    assert events.Scalars("unseen/drift")[-1].value == pytest.approx(last["drift"], abs=1e-6)
    assert not {"unseen/flops", "unseen/fraction", "steps/step"} & {*events.Tags()["scalars"]}
    shown = events.Images("unseen/images")
    assert (shown[0].step, shown[-1].step) == (0, last["step"])
    # The same command without a tracker finds the cell finished.
    before = sorted(tmp_path.glob("*/*"))
    assert run_benchmark.main(arguments) == 0
    assert sorted(tmp_path.glob("*/*")) == before


def record(cell: Cell, images: torch.Tensor) -> None:
    with cell.claimed():
        cell.begin()
        cell.append("steps", {"step": 1, "reward": 0.5, "loss": None, "grad_norm": float("inf")})
        cell.save_images("train", 1, images)


def test_pictures_are_those_on_disk(tmp_path: Path):
    cell = Cell(tmp_path, DESCRIPTION, track="tensorboard")
    record(cell, torch.rand(1, 3, 8, 8))
    events = EventAccumulator(str(cell.path)).Reload()
    assert events.Tags()["scalars"] == ["steps/reward"]  # what is no number is left out
    (tracked,) = events.Images("train/images")
    (tmp_path / "tracked.png").write_bytes(tracked.encoded_image_string)
    saved = Image.open(cell.path / "images/train/000001/000.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "tracked.png")), np.asarray(saved))


def evaluated(cell: Cell) -> None:
    """Two steps, then the base model's evaluation and that of the first step, as the loop does."""
    head = {"split": "unseen", "fraction": 0.0}
    with cell.claimed():
        cell.begin()
        for step in (1, 2):
            cell.append("steps", {"step": step, "reward": 10.0 + step})
            cell.save_images("unseen", step - 1, torch.rand(1, 3, 8, 8))
            cell.append("evals", head | {"step": step - 1, "rewards": {"jpeg": float(step - 1)}})


class LikeWandb:
    """Keeps Weights & Biases' rule: what is logged at a step before the newest is dropped."""

    def __init__(self) -> None:
        self.kept: list[dict] = []
        self.axes: dict[str, str] = {}

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric

    def log(self, values: dict, step: int | None = None) -> None:
        if step is None or step >= len(self.kept):
            self.kept.append(values)

    def finish(self) -> None:
        pass


def test_wandb_drops_no_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    like = LikeWandb()
    module = SimpleNamespace(init=lambda **_: like, Image=lambda picture: picture)
    monkeypatch.setitem(sys.modules, "wandb", module)
    evaluated(Cell(tmp_path, DESCRIPTION, track="wandb"))
    assert like.axes == {"*": "optimizer_step"}
    found = {row["optimizer_step"]: row["unseen/jpeg"] for row in like.kept if "unseen/jpeg" in row}
    assert found == {0: 0.0, 1: 1.0}
    assert [row["optimizer_step"] for row in like.kept if "unseen/images" in row] == [0, 1]


def test_wandb_has_every_evaluation_in_its_offline_file(tmp_path: Path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    evaluated(Cell(tmp_path, DESCRIPTION, track="wandb"))
    from wandb.proto import wandb_internal_pb2

    (file,) = tmp_path.rglob("*.wandb")
    content, place, whole, rows = file.read_bytes(), 7, b"", []
    while place + 7 < len(content):  # LevelDB's log: blocks of checksum, length, type, data
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind not in (1, 4):  # the first or a middle part of a record
            continue
        record = wandb_internal_pb2.Record()
        record.ParseFromString(whole)
        whole, items = b"", record.history.item
        rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    found = {row["optimizer_step"]: row["unseen/jpeg"] for row in rows if "unseen/jpeg" in row}
    assert found == {0: 0.0, 1: 1.0}


@pytest.mark.parametrize("where", ["start", "log", "log_images", "finish"])
def test_a_tracker_that_fails_is_left_alone(where: str, tmp_path: Path, monkeypatch, capsys):
    def fails(*arguments: object, **options: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(accelerate.tracking.TensorBoardTracker, where, fails)
    cell = Cell(tmp_path, DESCRIPTION, track="tensorboard")
    record(cell, torch.rand(1, 3, 8, 8))
    assert capsys.readouterr().err == (
        "--track tensorboard: no space left; the run goes on without\n"
    )
    assert json.loads((cell.path / "steps.jsonl").read_text())["step"] == 1
    assert (cell.path / "images/train/000001/000.png").exists()


def test_a_tracker_that_is_not_installed(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: [])
    assert run_benchmark.main(["--track", "wandb", "--out", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err == (
        "run_benchmark.py: --track wandb: it is not installed; pip install wandb\n"
    )
    assert not (tmp_path / "runs").exists()
