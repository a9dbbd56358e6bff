"""Prompts beyond a text encoder's limit are said once, with what is left, and recorded."""

import json
from pathlib import Path

import pytest
from conftest import tiny_pipeline

import run_benchmark
from benchmarks import cut_prompts
from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import Ledger

#: The tiny text encoder reads 14 letters beside the two ends.
LONG, OTHER, WHOLE = "abcdefghijklmnop", "abcdefghijklmnqq", "abcdefghijklmn"


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_prompts, "_said", set())


def test_prompts_that_become_one_are_named_once(capsys: pytest.CaptureFixture[str]):
    model = StableDiffusion(tiny_pipeline(), Ledger())
    prompts = [LONG, OTHER, "cat", LONG]
    for _ in range(2):
        found = cut_prompts.warned({"the model": model}, prompts)
    left = found["the model"]
    assert set(left) == {LONG, OTHER} and {v.replace(" ", "") for v in left.values()} == {WHOLE}
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"prompt {LONG!r} is too long: the model reads only ")
    assert first.endswith(f"as it does of {OTHER!r}") and second.endswith(f"of {LONG!r}")
    assert cut_prompts.warned({"the model": model}, [WHOLE, "a cat"]) == {}


def test_an_evaluation_records_them(tiny_folder: Path, tmp_path: Path, capsys):
    arguments = ["evaluate", "--backbone", str(tiny_folder), "--prompts", LONG, "--images", "1"]
    arguments += ["--reward", "colourfulness", "--held-out", "--out", str(tmp_path)]
    arguments += ["--task", str(tiny_folder / "few.toml")]
    assert run_benchmark.main(arguments) == 0
    assert "is too long: the model reads only" in capsys.readouterr().err
    (file,) = tmp_path.glob("*/cut_prompts.json")
    assert list(json.loads(file.read_text())["the model"]) == [LONG]
