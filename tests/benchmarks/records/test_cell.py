"""Run directories: their names, who may write, and what is there after a fault."""

import errno
import fcntl
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.api import UserError
from benchmarks.records.cell import Cell, to_pil
from benchmarks.records.state import look

DESCRIPTION = {"method": "alignprop", "reward": "jpeg", "seed": 0}


def test_the_name_is_a_hash_of_the_description_alone(tmp_path: Path):
    cell = Cell(tmp_path, DESCRIPTION)
    other_order = {key: DESCRIPTION[key] for key in ("seed", "reward", "method")}
    assert cell.path.name.startswith("alignprop-jpeg-seed0-")
    assert Cell(tmp_path, other_order, facts={"git": "abc"}).path == cell.path
    for change in ({"seed": 1}, {"budget": 4.0}):
        assert Cell(tmp_path, DESCRIPTION | change).path != cell.path
    expression = Cell(tmp_path, DESCRIPTION | {"reward": "0.5 * jpeg + my/file.py"})
    assert expression.path.name.startswith("alignprop-0.5___jpeg_+_my_file.py-seed0-")


def test_facts_stand_beside_the_description(tmp_path: Path):
    cell = Cell(tmp_path, DESCRIPTION, facts={"git": "abc"})
    cell.announce()
    assert json.loads((cell.path / "cell.json").read_text()) == DESCRIPTION | {"git": "abc"}


def test_a_cell_is_run_by_one_process_at_a_time(tmp_path: Path):
    with Cell(tmp_path, DESCRIPTION).claimed():
        second = Cell(tmp_path, DESCRIPTION).claimed()
        with pytest.raises(UserError, match="being run by another process"):
            second.__enter__()
    with Cell(tmp_path, DESCRIPTION).claimed():
        pass


def test_without_locks_a_cell_is_run_and_a_line_says_so(tmp_path: Path, monkeypatch, capsys):
    """As on file systems of some clusters."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    cell = Cell(tmp_path, DESCRIPTION)
    for _ in range(2):
        with cell.claimed():
            cell.begin()
    error = capsys.readouterr().err
    assert "has no locks (Function not implemented)" in error and error.count("\n") == 1
    assert look(cell.path)[0] == "unfinished"


@pytest.mark.parametrize("name", [".", "lock", "steps.jsonl", "evals.jsonl", "images", "done"])
def test_nothing_is_written_through_a_link(name: str, tmp_path: Path):
    cell, outside = Cell(tmp_path / "runs", DESCRIPTION), tmp_path / "outside"
    (outside / "file" if name in (".", "images") else outside).parent.mkdir(exist_ok=True)
    file = outside / "file" if name in (".", "images") else outside
    file.write_text("precious")
    (cell.path.parent if name == "." else cell.path).mkdir(parents=True)
    (cell.path / name if name != "." else cell.path).symlink_to(outside)
    for act in (cell.announce, cell.claimed().__enter__):
        with pytest.raises(UserError, match="is a link; remove it"):
            act()
    assert file.read_text() == "precious"


def test_a_link_within_the_cell_is_harmless(tmp_path: Path):
    """Trackers make such."""
    cell = Cell(tmp_path, DESCRIPTION)
    (cell.path / "wandb").mkdir(parents=True)
    (cell.path / "wandb" / "run").touch()
    (cell.path / "wandb" / "latest").symlink_to("run")
    with cell.claimed():
        assert cell.begin() is None


def test_records_cut_short_take_their_checkpoint_with_them(tmp_path: Path):
    cell = Cell(tmp_path, DESCRIPTION)
    records = cell.path / "steps.jsonl"
    with cell.claimed():
        assert cell.begin() is None
        for step in (1, 2):
            cell.append("steps", {"step": step})
            cell.checkpoint(step, {"step": step})
        first, second = records.read_text().splitlines(keepends=True)
        records.write_text(first + second[:-3])
        found = cell.begin()
        assert found is not None and found["step"] == 1 and records.read_text() == first
        records.unlink()
        assert cell.begin() is None and not records.exists()


def test_records_after_the_checkpoint_are_cut_back(tmp_path: Path):
    cell = Cell(tmp_path, DESCRIPTION)
    with cell.claimed():
        cell.begin()
        cell.append("steps", {"step": 1})
        cell.checkpoint(1, {"step": 1, "weights": torch.ones(2)})
        cell.append("steps", {"step": 2})
        cell.append("evals", {"step": 2})
    again = Cell(tmp_path, DESCRIPTION)
    with again.claimed():
        found = again.begin()
    assert found is not None and found["step"] == 1 and found["weights"].tolist() == [1.0, 1.0]
    assert (cell.path / "steps.jsonl").read_text() == '{"step": 1}\n'
    assert (cell.path / "evals.jsonl").read_text() == ""


def test_without_a_checkpoint_everything_is_cleared(tmp_path: Path):
    cell = Cell(tmp_path, DESCRIPTION)
    with cell.claimed():
        cell.begin()
        cell.append("steps", {"step": 1})
        cell.save_images("train", 0, torch.zeros(1, 3, 2, 2))
        cell.fail(RuntimeError("it broke"))
        assert cell.failed and cell.begin() is None
    assert {path.name for path in cell.path.iterdir()} == {"cell.json", "lock"}


def test_two_checkpoints_are_kept_and_none_when_done(tmp_path: Path):
    cell = Cell(tmp_path, DESCRIPTION)
    with cell.claimed():
        cell.begin()
        for step in (1, 2, 10):
            cell.checkpoint(step, {"step": step})
        kept = sorted(path.name for path in cell.path.glob("checkpoint-*"))
        assert kept == ["checkpoint-00000002.safetensors", "checkpoint-00000010.safetensors"]
        assert not cell.done
        cell.finish()
    assert cell.done and not list(cell.path.glob("checkpoint-*"))


def test_pictures_are_rounded_to_eight_bits(tmp_path: Path):
    picture = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0]).view(1, 2, 2).expand(3, 2, 2)
    expected = [[0, 0], [1, 255]]
    assert np.asarray(to_pil(picture))[..., 0].tolist() == expected
    cell = Cell(tmp_path, DESCRIPTION)
    cell.save_images("unseen", 7, torch.stack([picture, 1 - picture]))
    saved = Image.open(cell.path / "images/unseen/000007/000.png")
    assert np.asarray(saved)[..., 2].tolist() == expected
    assert (cell.path / "images/unseen/000007/001.png").exists()
