"""The recorded search: who wins, and mistakes in its file."""

from pathlib import Path

import pytest

import run_benchmark
from benchmarks.api import UserError
from benchmarks.experiments import search


def trial(reward: float, kept: float) -> search.Trial:
    return search.Trial(method="refl", values={}, reward=reward, kept=kept)


def test_the_search_chooses_the_best_reward_of_those_that_keep_the_rest():
    trials = [trial(1.0, 1.0), trial(2.0, 0.9), trial(9.0, 0.2)]
    assert search.choose(trials, floor=0.9) is trials[1]
    assert search.choose(trials, floor=0.1) is trials[2]
    assert search.choose(trials[1:], floor=0.95) is trials[1]


def test_a_bad_place_is_one_clear_line(tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    assert run_benchmark.main(["search", "--out", str(tmp_path / "file" / "inside")]) == 2
    message = capsys.readouterr().err
    assert "cannot be written" in message and message.count("\n") == 1


FILE = """
floor = 0.0
budget = "steps=1"
seed = 3
task = "TINY/few.toml"
reward = "colourfulness"
backbone = "TINY"
[trials]
refl = [
  { batch_size = 1, sampling_steps = 2, earliest = 0, latest = 1 },
  { batch_size = 2, sampling_steps = 2, earliest = 0, latest = 1 },
]
"""


def test_trials_are_cells_that_are_run_once(tiny_folder: Path, tmp_path: Path, capsys):
    """A shard judges nobody; the whole goes on from it, and the sources name the trial."""
    path, out = tmp_path / "mine.toml", tmp_path / "out"
    path.write_text(FILE.replace("TINY", str(tiny_folder)))
    words = ["search", str(path), "--out", str(out)]
    assert run_benchmark.main([*words, "--shard", "1/2"]) == 0
    assert len(list(out.glob("*/done"))) == 1 and not (out / "search.md").exists()
    assert run_benchmark.main(words) == 0
    assert len(list(out.glob("*/done"))) == 2
    assert capsys.readouterr().out.count("| yes |") == 1
    (spec, _), _ = search.cells(search.load(path), path)
    assert spec.sources["config.batch_size"] == f"{path}, refl, trial 1"
    assert spec.sources["budget"] == spec.sources["seed"] == str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 3", 'seed must be int, not "a"'.replace('"', "'")),
        ("reward =", "unknown key 'rewards'"),
        ("refl = [", "same number of trials"),
    ],
)
def test_mistakes_in_the_file(text: str, message: str, tiny_folder: Path, tmp_path: Path):
    wrong = {"seed = 3": 'seed = "a"', "reward =": "rewards =", "refl = [": "rwr = []\nrefl = ["}
    path = tmp_path / "mine.toml"
    path.write_text(FILE.replace(text, wrong[text]))
    with pytest.raises(UserError) as error:
        search.load(path)
    assert message in str(error.value) and str(path) in str(error.value)
