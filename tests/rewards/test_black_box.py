"""A function in a file as a reward: what it is handed, its timeout, and how its failures look."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import run_benchmark
from benchmarks import registry
from benchmarks.api import Reward, UserError

FILE = """
import os, time
import neighbour

def red(pictures, prompts):
    assert all(p.mode == "RGB" for p in pictures)
    return [p.getpixel((0, 0))[0] + neighbour.BONUS * len(t) for p, t in zip(pictures, prompts)]

def slow(pictures, prompts):
    time.sleep(60)
slow.timeout = 0.5

def fails(pictures, prompts):
    raise ValueError("no\\nteeth")

def dies(pictures, prompts):
    os._exit(3)

def few(pictures, prompts):
    return [1.0]

def leaves(pictures, prompts):
    raise SystemExit(3)

def nan(pictures, prompts):
    return [float("nan"), *range(len(pictures) - 1)]

def words(pictures, prompts):
    return ["good"] * len(pictures)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("BONUS = 1000\n")
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def make(path: Path, function: str) -> Reward:
    return registry.rewards.get(f"{path}:{function}")("cpu")


def test_it_gets_pil_pictures_and_prompts(file: Path) -> None:
    images = torch.zeros(2, 3, 5, 8)
    images[1, 0] = 1.0
    reward = make(file, "red")
    for _ in range(2):
        assert reward(images, ["a", "cat"]).tolist() == [1000.0, 3255.0]


def test_too_slow_a_function_is_stopped(file: Path) -> None:
    reward, start = make(file, "slow"), time.monotonic()
    with pytest.raises(UserError, match=r"no answer within 0\.5 s.*slow\.timeout = SECONDS"):
        reward(torch.zeros(1, 3, 4, 4), ["a"])
    assert time.monotonic() - start < 50
    reward._process.join(10)
    assert not reward._process.is_alive()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", "mine.py:fails: ValueError: no teeth"),
        ("dies", "ended without an answer"),
        ("few", "must return a number for each of 2 pictures"),
        ("leaves", "SystemExit: 3"),
        ("words", "ValueError: could not convert"),
    ],
)
def test_failures_are_one_clear_line(file: Path, function: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make(file, function)(torch.zeros(2, 3, 4, 4), ["a", "b"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "name", "message"),
    [
        ("alignprop", "mine.py:red", "needs the gradient of the reward"),
        ("ddpo", "mine.py:blue", "does not define 'blue', but dies, "),
        ("ddpo", "yours.py:red", "cannot be read"),
        ("ddpo", "broken.py:red", "is not valid Python"),
    ],
)
def test_it_is_refused_early(
    method: str, name: str, message: str, file: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Before anything is computed, and without running the file."""
    monkeypatch.chdir(file.parent)
    file.write_text(FILE + "\nraise SystemExit('it ran')\n")
    (file.parent / "broken.py").write_text("def red(:\n")
    assert run_benchmark.main(["--methods", method, "--reward", name, "--out", "runs"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(file.parent.glob("runs/*/cell.json"))


def test_a_number_that_is_not_finite_is_the_guards_affair(file: Path) -> None:
    """Which lets the picture count as an average one; up to twenty, see docs/reliability.md."""
    values = make(file, "nan")(torch.zeros(3, 3, 4, 4), ["a"] * 3)
    assert values[0].isnan() and values[1:].tolist() == [0.0, 1.0]


def test_a_script_without_a_main_guard_runs_once(file: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "print('it ran')\nimport torch\nfrom benchmarks import registry\n"
        f"reward = registry.rewards.get('{file}:red')('cpu')\n"
        "print(reward(torch.zeros(1, 3, 4, 4), ['a']).tolist())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(run_benchmark.__file__).parent)}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "it ran\n[1000.0]\n"


def test_a_changed_file_is_another_cell(file: Path) -> None:
    before = registry.rewards.get(f"{file}:red").recorded
    assert before.startswith("sha256 ")
    other = file.with_name("other.py")
    other.write_text(FILE + "\n")
    assert registry.rewards.get(f"{other}:red").recorded != before


def test_a_method_without_gradients_runs_with_it(file: Path, tiny_folder: Path) -> None:
    out = file.parent / "runs"
    arguments = ["--methods", "ddpo", "--reward", f"{file}:red", "--budget", "steps=1"]
    arguments += [
        "--backbone",
        str(tiny_folder / "quick.toml"),
        "--task",
        str(tiny_folder / "few.toml"),
    ]
    arguments += [
        "--ddpo.samples-per-round",
        "4",
        "--ddpo.samples-per-prompt",
        "2",
        "--ddpo.micro-batch",
        "2",
        "--out",
        str(out),
    ]
    assert run_benchmark.main([*arguments, "--ddpo.sampling-steps", "4"]) == 0
    assert len(list(out.glob("*/done"))) == 1
