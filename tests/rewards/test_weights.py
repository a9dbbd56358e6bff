"""Files of weights that are not there, dangerous, damaged or of another model."""

import os
import re
from pathlib import Path

import pytest
import torch
from synthetic import NAMES, fixture_damaged, fixture_weights, forget, make, smooth  # noqa: F401

from benchmarks.api import UserError


@pytest.mark.parametrize("name", NAMES)
def test_without_weights_it_says_what_how_big_and_where(name: str, tmp_path, monkeypatch) -> None:
    """And nothing is downloaded unless asked for."""
    import huggingface_hub

    asked = []

    def snapshot(repository: str, *, local_files_only: bool, **_: object) -> str:
        asked.append(local_files_only)
        raise huggingface_hub.errors.LocalEntryNotFoundError("not here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.delenv("ALIGNPROP_BENCH_WEIGHTS", raising=False)
    monkeypatch.delenv("ALIGNPROP_BENCH_DOWNLOAD", raising=False)
    forget()
    message = r"needs .* of .*/.* \([\d,]+ MB\).*ALIGNPROP_BENCH_WEIGHTS.*DOWNLOAD=1"
    with pytest.raises(UserError, match=message):
        make(name)(smooth(1, 64, 64), ["a cat"])
    monkeypatch.setenv("ALIGNPROP_BENCH_DOWNLOAD", "1")
    with pytest.raises(UserError, match="tried to download"):
        make(name)(smooth(1, 64, 64), ["a cat"])
    assert asked == [True, False]


class Bomb:
    """A pickle that runs code when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


FILES = {
    "aesthetic": "sac+logos+ava1-l14-linearMSE.pth",
    "hpsv2": "HPS_v2_compressed.pt",
    "imagereward": "ImageReward.pt",
}


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_with_code_is_refused_and_not_run(name: str, damaged: Path, tmp_path) -> None:
    path = damaged / FILES[name]
    path.unlink()
    torch.save({"state_dict": Bomb(tmp_path / "it-ran")}, path)
    with pytest.raises(UserError, match=f"{re.escape(path.name)}.*nothing was run") as caught:
        make(name)(smooth(1, 64, 64), ["a cat"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "it-ran").exists()


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("name", [*FILES, "clipscore"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_file_is_named(name: str, share: float, damaged: Path) -> None:
    path = damaged / FILES.get(name, "clip-vit-base-patch32/model.safetensors")
    content = path.read_bytes()
    replace(path, content[: int(share * len(content))])
    with pytest.raises(UserError, match=f"{re.escape(path.name)}: damaged or truncated") as caught:
        make(name)(smooth(1, 64, 64), ["a cat"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*FILES, "pickscore"])
@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_a_wrong_weight_is_named(name: str, change: str, damaged: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = damaged / FILES.get(name, "PickScore_v1/model.safetensors")
    whole = load_file(path) if name == "pickscore" else torch.load(path)
    state = whole.get("state_dict", whole)
    key = next(k for k in state if k.endswith((".bias", "ln_1.bias")))
    value = state.pop(key)
    if change == "unknown":
        state |= {key: value, "something.else": torch.zeros(1)}
    if change == "shape":
        state[key] = torch.zeros(5)
    path.unlink()
    save_file(whole, path) if name == "pickscore" else torch.save(whole, path)
    message = {"missing": "lacks weight", "unknown": "unknown weight", "shape": "has shape"}[change]
    with pytest.raises(UserError, match=f"{re.escape(path.name)}: .*{message}"):
        make(name)(smooth(1, 64, 64), ["a cat"])
