"""The ``select`` command on the tiny model: costs per picture, and when training is cheaper."""

import json
from pathlib import Path

import pytest
from two_methods import run

import run_benchmark


def select(folder: Path, out: Path, *arguments: object) -> int:
    words = [
        "select",
        *arguments,
        "--backbone",
        folder / "quick.toml",
        "--task",
        folder / "few.toml",
    ]
    return run_benchmark.main([*map(str, words), "--out", str(out)])


def record(out: Path) -> dict:
    (file,) = out.glob("select-*/selection.json")
    return json.loads(file.read_text())


def test_best_of_n_against_a_trained_cell(tiny_folder: Path, tmp_path: Path, capsys):
    assert run(tiny_folder, tmp_path, "--budget", "steps=1") == 0
    capsys.readouterr()
    arguments = ("best-of-n", "--candidates", 1, 2, "--against", tmp_path)
    assert select(tiny_folder, tmp_path, *arguments) == 0
    printed = capsys.readouterr().out
    rows = [row for row in record(tmp_path)["rows"] if row["split"] == "unseen"]
    base, one, two = rows
    assert [row["candidates"] for row in rows] == [1, 1, 2]
    # The only candidate starts from the evaluation's own noise.
    assert one["rewards"]["jpeg"] == pytest.approx(base["rewards"]["jpeg"])
    assert two["rewards"]["jpeg"] >= one["rewards"]["jpeg"]
    assert base["per_picture"]["reward_queries"] == 0
    assert [row["per_picture"]["reward_queries"] for row in (one, two)] == [1, 2]
    assert two["per_picture"]["nfe"] == 2 * base["per_picture"]["nfe"] == 2 * 2 * 2
    assert two["per_picture"]["flops"] == pytest.approx(2 * one["per_picture"]["flops"])
    (cell,) = tmp_path.glob("alignprop-*")
    end = json.loads((cell / "evals.jsonl").read_text().splitlines()[-1])
    count = end["flops"] / (two["per_picture"]["flops"] - base["per_picture"]["flops"])
    assert f"| {-int(-count // 1)} (" in printed
    assert next(tmp_path.glob("select-*/break_even.md")).read_text() in printed
    assert run_benchmark.main(["report", str(tmp_path)]) == 0
    assert "foreign" not in capsys.readouterr().out


def test_das_needs_a_gradient_and_takes_the_stand_in(tiny_folder: Path, tmp_path: Path):
    (tmp_path / "das.toml").write_text("[das]\nalpha = 0.5\n")
    options = ("--candidates", 2, "--config", tmp_path / "das.toml")
    assert select(tiny_folder, tmp_path, "das", *options) == 0
    found = record(tmp_path)
    assert found["selections"][0]["config"]["alpha"] == 0.5
    assert found["selections"][0]["reward"] == "jpeg-soft"
    row = found["rows"][-1]["per_picture"]
    assert row["nfe"] == row["denoiser_backward"] == 2 * 2 * 2
    assert row["images"] == row["reward_queries"] == 2 * 3 and row["reward_gradients"] == 2 * 2


def test_bad_input_is_one_line(tiny_folder: Path, tmp_path: Path, capsys):
    for arguments, message in (
        (("best-off-n",), "did you mean 'best-of-n'"),
        (("best-of-n", "--candidates", 0), "at least 1"),
        (("best-of-n", "--candidates", 1, "--against", tmp_path), "no finished cell"),
    ):
        assert select(tiny_folder, tmp_path, *arguments) == 2
        assert message in capsys.readouterr().err
