"""Changed code and changed weights are another cell; what is this checkout's own adds nothing."""

import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import run_benchmark
from benchmarks import content, registry
from benchmarks.api import UserError
from benchmarks.experiments.cells import resolve
from benchmarks.harness.spec import Spec

PLUGIN = """
from methods import register_method
from methods.refl import ReFL
import pieces.signs

@register_method("mine")
class Mine(ReFL):
    "Mine."
"""


def test_our_own_adds_nothing():
    (spec,) = resolve({"refl": []})
    assert spec.content() == {} and "content" not in spec.description()


def test_changed_weights_are_another_cell(tiny_folder: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (tmp_path / "mine.toml").write_text('model = "model"\nlike = "emoji"\n')
    for backbone in (str(folder), str(tmp_path / "mine.toml")):
        (spec,) = resolve({"refl": []}, backbone=backbone)
        before = spec.description()
        file = folder / "unet/diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        weights["conv_in.bias"] += 1
        save_file(weights, file)
        assert spec.description()["content"] != before["content"]
        with pytest.raises(UserError, match=r"x: changed since: backbone .*would differ"):
            Spec.from_record(before, "x")
    (tmp_path / "mine.toml").write_text('model = "someone/a-model"\nlike = "emoji"\n')
    (spec,) = resolve({"refl": []}, backbone=backbone)
    assert spec.content() == {f"backbone {backbone}": "someone/a-model"}


def test_a_changed_plugin_or_what_it_imports_is_another_cell(tmp_path, monkeypatch, fresh_registry):
    monkeypatch.syspath_prepend(tmp_path)
    plugin, piece = tmp_path / "mine.py", tmp_path / "pieces" / "signs.py"
    piece.parent.mkdir()
    piece.write_text("SIGN = 1\n")
    plugin.write_text(PLUGIN)
    registry.load_plugin(plugin)
    (spec,) = resolve({"mine": []})
    found = [spec.content()["method mine"]]
    for path in (piece, plugin):
        path.write_text(path.read_text() + "# changed\n")
        found.append(spec.content()["method mine"])
    assert len(set(found)) == 3


def test_a_changed_function_is_evaluated_anew(tiny_folder: Path, tmp_path: Path, capsys):
    """Also where what changed is the neighbour that its file imports."""
    reward, neighbour = tmp_path / "my.py", tmp_path / "neighbour.py"
    neighbour.write_text("BONUS = 0\n")
    reward.write_text(
        "import neighbour\ndef score(pictures, prompts):\n"
        "    return [float(neighbour.BONUS)] * len(pictures)\n"
    )
    arguments = ["evaluate", "--reward", f"{reward}:score", "--held-out", "--prompts", "cat"]
    arguments += ["--backbone", str(tiny_folder), "--images", "1", "--out", str(tmp_path / "out")]
    for bonus in (0, 1000):
        neighbour.write_text(f"BONUS = {bonus}\n")
        assert run_benchmark.main(arguments) == 0
        assert f" {bonus}.0000 " in capsys.readouterr().out


def test_large_files_are_sampled_all_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(content, "LARGE", 1000)
    path = tmp_path / "large"
    found = set()
    for i, place in enumerate((0, 5_000_000, 8_000_000)):
        data = bytearray(8_000_001)
        data[place] = 1
        path.write_bytes(data)
        os.utime(path, (i, i))
        found.add(content.files([path], tmp_path))
    assert len(found) == 3


def test_own_weights_of_a_reward_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reward = registry.rewards.get("clipscore")
    assert reward.content() == ""
    monkeypatch.setenv("ALIGNPROP_BENCH_WEIGHTS", str(tmp_path))
    for name in reward.hubs[0].files:
        (tmp_path / name).write_text("one")
    before = reward.content()
    (tmp_path / "model.safetensors").write_text("another")
    assert before and reward.content() not in ("", before)
