"""The ``evaluate`` command on the tiny model: checkpoints, mixes, sweeps, parts of the chain."""

import json
from pathlib import Path

import pytest
import torch

import run_benchmark
from benchmarks.backbone import lora_file
from benchmarks.backbone.stable_diffusion import StableDiffusion


def random_state(backbone: StableDiffusion, seed: int) -> lora_file.State:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=generator) for k, v in backbone.weights().items()}


@pytest.fixture
def two(backbone: StableDiffusion, tmp_path: Path) -> list[Path]:
    """Two checkpoints with every matrix non-zero."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        backbone.save_weights(folder, random_state(backbone, seed))
    return folders


def evaluate(folder: Path, out: Path, *arguments: object) -> int:
    words = ["evaluate", "--backbone", folder, "--task", folder / "few.toml", "--out", out]
    return run_benchmark.main([*map(str, words), *map(str, arguments)])


def rows(out: Path, kind: str) -> list[dict]:
    (folder,) = out.glob(f"evaluate-{kind}-*")
    return [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]


def test_sweep_from_the_base_model(tiny_folder, two, tmp_path, capsys):
    assert evaluate(tiny_folder, tmp_path, two[0], "--sweep", 3) == 0
    found = [row for row in rows(tmp_path, "sweep") if row["split"] == "unseen"]
    assert [row["name"] for row in found] == ["base model", "0", "0.5", "1"]
    assert found[1]["drift"] == pytest.approx(0, abs=1e-6) and found[3]["drift"] > 0
    assert found[1]["rewards"] == pytest.approx(found[0]["rewards"])
    assert {"jpeg", "alignment"} <= found[0]["rewards"].keys()
    assert "diversity" in capsys.readouterr().out
    (folder,) = tmp_path.glob("evaluate-sweep-*")
    assert len(list(folder.glob("images/unseen/*/*.png"))) == 4 * 4


def test_a_sweep_between_two_ends_at_each(tiny_folder, two, tmp_path):
    """The ends of the sweep draw what each checkpoint alone draws; the first row is the base."""
    own = ["--prompts", "cat", "dog", "--images", 1]
    assert evaluate(tiny_folder, tmp_path, *two, "--sweep", 2, *own) == 0
    assert evaluate(tiny_folder, tmp_path, *two, *own) == 0
    ends, alone = rows(tmp_path, "sweep"), rows(tmp_path, "checkpoints")
    assert [row["coefficients"] for row in ends] == [[], [1, 0], [0, 1]]
    assert [row["name"] for row in alone] == ["base model", *map(str, two)]
    for one, other in zip(ends, alone, strict=True):
        assert one["rewards"] == pytest.approx(other["rewards"], abs=1e-4)
    assert alone[1]["drift"] != pytest.approx(alone[2]["drift"])


def test_without_a_checkpoint_it_is_the_base_model(tiny_folder, tmp_path):
    assert evaluate(tiny_folder, tmp_path) == 0
    assert [row["name"] for row in rows(tmp_path, "checkpoints")] == ["base model"] * 2


def test_parts_mix_and_own_prompts(tiny_folder, two, tmp_path):
    own = ["--prompts", "cat", "dog", "--images", 1]
    assert evaluate(tiny_folder, tmp_path, two[0], "--parts", 2, *own) == 0
    names = [row["name"] for row in rows(tmp_path, "parts")]
    assert names == ["base model", "first 50%", "last 50%", "whole chain"]
    assert evaluate(tiny_folder, tmp_path, *two, "--mix", 1, 0, *own) == 0
    mixed, whole = rows(tmp_path, "mix")[-1], rows(tmp_path, "parts")[-1]
    assert mixed["rewards"] == pytest.approx(whole["rewards"], abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ONE", "--mix", "1", "2"], "2 coefficients for 1 checkpoints"),
        (["--sweep", "3"], "one or two checkpoints"),
        (["ONE", "--parts", "1"], "at least 2 parts"),
        (["ONE", "--sweep", "3", "--parts", "3"], "one of --mix"),
        (["/nonexistent"], "no LoRA checkpoint here"),
        (["BROKEN"], "not a LoRA checkpoint"),
        (["ONE", "--backbone", "emoji"], "does not fit backbone"),
        (["--prompts", "/nonexistent.txt"], "cannot be read"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, tiny_folder, two, tmp_path, capsys):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no such thing")
    places = {"ONE": str(two[0]), "BROKEN": str(broken)}
    assert evaluate(tiny_folder, tmp_path, *[places.get(a, a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_code_that_a_checkpoint_names_is_not_run(tiny_folder, two, tmp_path, capsys):
    """Not from the cell.json beside it; only if the command line names it too."""
    code = tmp_path / "theirs.py"
    ran = tmp_path / "ran"
    code.write_text(
        f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
        "def score(images, prompts):\n    return [0.0 for _ in images]\n"
    )
    (two[0] / "cell.json").write_text(json.dumps({"reward": f"{code}:score"}))
    own = ["--prompts", "cat", "--images", 1]
    assert evaluate(tiny_folder, tmp_path, two[0], *own) == 2
    error = capsys.readouterr().err
    assert f"--plugin {code}" in error and error.count("\n") == 1 and not ran.exists()
    assert evaluate(tiny_folder, tmp_path, two[0], *own, "--reward", f"{code}:score") == 0
    assert ran.exists()


@pytest.mark.parametrize(
    ("record", "message"),
    [("[1, 2]", "no cell, but [1, 2]"), ('{"reward": 3}', "reward must be str"), ("{", "not JSON")],
)
def test_a_damaged_cell_is_one_clear_line(record, message, tiny_folder, two, tmp_path, capsys):
    (two[0] / "cell.json").write_text(record)
    assert evaluate(tiny_folder, tmp_path, two[0]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
