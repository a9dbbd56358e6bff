"""Nothing pickled is loaded from a user's path, hub models can be pinned, no secret is kept."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import analysis.report
import run_benchmark
from benchmarks import registry
from benchmarks.api import UserError
from benchmarks.backbone import load as load_model
from benchmarks.backbone import lora_file, pipeline
from benchmarks.compute.ledger import Ledger
from benchmarks.records import checkpoint
from benchmarks.records.cell import Cell
from methods.refl import ReFL


class Bomb:
    """Makes a directory when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.fixture
def target(tmp_path: Path):
    """What a bomb would make; it must not exist in the end."""
    yield tmp_path / "it-ran"
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("unet", "diffusion_pytorch_model.bin"),
        ("vae", "diffusion_pytorch_model.bin"),
        ("text_encoder", "pytorch_model.bin"),
    ],
)
def test_pickled_weights_of_a_backbone_are_refused(
    part: str, name: str, tiny_folder: Path, tmp_path: Path, target: Path
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    for path in (folder / part).glob("*.safetensors"):
        path.unlink()
    torch.save({"weight": Bomb(target)}, folder / part / name)
    with pytest.raises(UserError, match="not a diffusers folder with safetensors"):
        load_model(str(folder), Ledger())


@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "pytorch_lora_weights.safetensors"])
def test_a_pickled_lora_is_refused(name: str, tmp_path: Path, target: Path):
    torch.save({"unet.weight": Bomb(target)}, tmp_path / name)
    with pytest.raises(UserError, match="not a LoRA checkpoint in safetensors"):
        lora_file.read(tmp_path / name)


def test_a_pickled_checkpoint_is_not_gone_on_from(tmp_path: Path, target: Path):
    cell = Cell(tmp_path, {"method": "refl", "reward": "jpeg", "seed": 0})
    cell.path.mkdir()
    path = cell.path / "checkpoint-00000001.safetensors"
    torch.save({"state": Bomb(target)}, path)
    with pytest.raises(checkpoint.Unreadable):
        checkpoint.load(path)
    with cell.claimed():
        assert cell.begin() is None


@pytest.mark.parametrize("revision", ["", "@0123abc"])
def test_a_model_of_the_hub_can_be_pinned(
    revision: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: dict[str, object] = {}

    def download(place: str, file: str, revision: str | None) -> str:
        asked["index"] = place, revision
        return str(tiny_folder / file)

    def load(place: str, **options: object) -> None:
        asked.update(options, place=place)
        raise OSError("no network in a test")

    monkeypatch.setattr(pipeline, "hf_hub_download", download)
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", load)
    with pytest.raises(UserError, match="no network in a test"):
        load_model(f"owner/name{revision}", Ledger())
    assert asked["place"] == "owner/name" and asked["use_safetensors"] is True
    assert asked["revision"] == (revision[1:] or None)
    assert asked["index"] == ("owner/name", revision[1:] or None)


def test_no_secret_is_recorded(tiny_folder: Path, tmp_path: Path, monkeypatch, capsys):
    """Of a cell that ends and one that fails, the environment's secrets are in no file."""
    secret = "s3cr3t-0123456789"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, secret)

    class Fails(ReFL):
        def step(self, step: int) -> None:
            raise RuntimeError("it broke")

    monkeypatch.setitem(registry.methods.entries, "fails", Fails)
    monkeypatch.setattr(analysis.report, "write_report", lambda out: "")
    arguments = ["--methods", "refl", "fails", "--backbone", str(tiny_folder / "quick.toml")]
    arguments += ["--task", str(tiny_folder / "few.toml"), "--budget", "steps=1"]
    for name in ("refl", "fails"):
        arguments += [f"--{name}.sampling-steps", "2", f"--{name}.batch-size", "1"]
        arguments += [f"--{name}.earliest", "0", f"--{name}.latest", "1"]
    arguments += ["--track", "tensorboard", "--out", str(tmp_path)]
    assert run_benchmark.main(arguments) == 1
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"cell.json", "failed.json", "done"} <= {path.name for path in files}
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert secret not in "".join(capsys.readouterr())
