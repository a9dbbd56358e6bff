"""The template runs as written, and ``check`` says what is wrong with a plugin."""

from pathlib import Path

import pytest

import run_benchmark
from benchmarks.conformance import contract, learns


@pytest.fixture(autouse=True)
def tiny_model(tiny_contract, fresh_registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little to learn from, and what is registered here is forgotten."""
    monkeypatch.setattr(learns, "TRIAL", learns.Trial(flops=2e8))


def test_the_template_keeps_the_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run_benchmark.main(["new", "method", "my_idea", "--dir", str(tmp_path)]) == 0
    path = tmp_path / "my_idea.py"
    assert "class MyIdea(Method)" in path.read_text()
    assert run_benchmark.main(["check", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith(": yes")] == lines[1:]
    assert len(lines) == 2 + len(contract.CHECKS)


def test_check_says_what_to_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run_benchmark.main(["new", "method", "my_idea", "--dir", str(tmp_path)]) == 0
    path = tmp_path / "my_idea.py"
    path.write_text(path.read_text().replace('{"reward_grad"}', '{"reward"}'))
    assert run_benchmark.main(["check", str(path)]) == 1
    assert "needs are honest: NO. the gradient of the reward is used" in capsys.readouterr().out


def test_a_template_appears_in_the_main_job(tiny_folder: Path, tmp_path: Path, capsys):
    run_benchmark.main(["new", "method", "my_idea", "--dir", str(tmp_path)])
    arguments = ["--methods", "my_idea", "refl", "--plugin", str(tmp_path / "my_idea.py")]
    arguments += [
        "--backbone",
        str(tiny_folder / "quick.toml"),
        "--task",
        str(tiny_folder / "few.toml"),
    ]
    arguments += ["--budget", "steps=1", "--my-idea.batch-size", "2"]
    assert run_benchmark.main([*arguments, "--out", str(tmp_path / "runs")]) == 0
    assert "my_idea" in capsys.readouterr().out
    assert (tmp_path / "runs" / "before_after_my_idea.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new"], "new method NAME"),
        (["new", "method", "not a name"], "new method NAME"),
        (["new", "reward", "mine"], "new method NAME"),
        (["new", "method", "mine", "--dir", "/dev/null"], "cannot be written"),
        (["check"], "A Python file that registers methods"),
        (["check", "/nonexistent.py"], "no such Python file"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, capsys):
    assert run_benchmark.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1


def test_an_existing_file_is_not_overwritten(tmp_path: Path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("precious")
    assert run_benchmark.main(["new", "method", "mine", "--dir", str(tmp_path)]) == 2
    assert path.read_text() == "precious" and "exists already" in capsys.readouterr().err


def test_a_file_without_methods_is_refused(tmp_path: Path, capsys):
    path = tmp_path / "empty.py"
    path.write_text("")
    assert run_benchmark.main(["check", str(path)]) == 2
    assert "registers no method" in capsys.readouterr().err
