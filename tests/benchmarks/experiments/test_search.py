"""The search: the same number of random trials for all, judged as reports judge, once widened."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

import run_benchmark
from benchmarks.api import UserError
from benchmarks.experiments import search
from benchmarks.experiments.search import Judged, Range, Search, Trial

LR = "optimizer.lr"


def a_search(**changes) -> Search:
    values = {
        "backbone": "emoji",
        "task": "validation",
        "rewards": ("jpeg",),
        "budget": "steps=1",
        "seeds": (1, 2),
        "trials": 5,
        "extension": 2,
        "widen": 4.0,
        "space": {
            "refl": {LR: Range(low=1e-4, high=1e-2)},
            "ddpo": {LR: Range(low=1e-3, high=1e-2)},
        },
    }
    return Search(**(values | changes))


def judged(method: str, lr: float, scores: Sequence[float] = (1.0,)) -> Judged:
    trial = Trial(method=method, reward="jpeg", number=1, values={LR: lr})
    return Judged(trial=trial, base=0.0, scores=tuple(scores), kept=1.0)


def test_trials_are_random_in_the_space_and_as_many_for_every_method():
    found = {m: search.drawn(a_search(trials=200), m, "jpeg") for m in ("refl", "ddpo")}
    assert {len(trials) for trials in found.values()} == {200}
    rates = sorted(trial.values[LR] for trial in found["refl"])
    assert 1e-4 <= rates[0] < 2e-4 and 5e-3 < rates[-1] <= 1e-2
    assert rates[100] == pytest.approx(1e-3, rel=0.5)  # evenly on the logarithm
    assert found["refl"] == search.drawn(a_search(trials=200), "refl", "jpeg")
    assert found["refl"] != search.drawn(a_search(trials=200), "refl", "absence")


def test_the_best_mean_over_seeds_wins_for_each_method():
    trials = [judged("refl", 1e-3, (5.0, 1.0)), judged("refl", 2e-3, (3.5, 3.0))]
    trials.append(judged("ddpo", 2e-3, (0.0, 0.0)))
    assert search.winners(trials) == [trials[1], trials[2]]


def test_a_winner_at_an_edge_gives_every_method_as_many_more_trials():
    inside = [judged("refl", 1e-3), judged("ddpo", 3e-3)]
    assert search.extended(a_search(), inside) == []
    low = search.extended(a_search(), [judged("refl", 1.05e-4), judged("ddpo", 3e-3)])
    rates = {m: [t.values[LR] for t in low if t.method == m] for m in ("refl", "ddpo")}
    assert all(2.5e-5 <= rate <= 1e-4 for rate in rates["refl"]) and len(rates["refl"]) == 2
    assert all(1e-3 <= rate <= 1e-2 for rate in rates["ddpo"]) and len(rates["ddpo"]) == 2
    assert [trial.number for trial in low] == [6, 7, 6, 7]
    high = search.extended(a_search(), [judged("refl", 1e-3), judged("ddpo", 9.9e-3)])
    assert all(1e-2 <= t.values[LR] <= 4e-2 for t in high if t.method == "ddpo")


def test_a_trial_is_worth_what_its_last_kept_checkpoint_has(tmp_path: Path):
    def record(name: str, rewards: list[float], kept: list[bool]) -> Path:
        lines = [
            {"split": split, "rewards": {"jpeg": reward}, "kept": keep}
            for reward, keep in zip(rewards, kept, strict=True)
            for split in ("train", "unseen")
        ]
        (tmp_path / name).mkdir()
        (tmp_path / name / "evals.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return tmp_path / name

    one = record("one", [0.0, 2.0, 9.0], [True, True, False])
    two = record("two", [0.0, 1.0, 4.0], [True, True, True])
    found = search.judge(judged("refl", 1e-3).trial, [one, two])
    assert found.scores == (2.0, 4.0) and found.score == 3.0
    assert found.base == 0.0 and found.kept == pytest.approx(5 / 6)


FILE = """
backbone = "TINY"
task = "TINY/few.toml"
rewards = ["colourfulness"]
budget = "steps=1"
seeds = [3, 4]
trials = 1
extension = 0
widen = 2.0
[space.refl]
"optimizer.lr" = { low = 1e-4, high = 1e-3 }
reward_weight = { low = 0.1, high = 1.0 }
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
    said = capsys.readouterr().out
    assert said.count("| yes |") == 1 and said.count("| base model |") == 1
    wanted = search.load(path)
    spec, _ = search.cells(wanted, search.drawn(wanted, "refl", "colourfulness"), path, [])
    assert spec.sources["config.optimizer.lr"] == f"{path}, trial 1"
    assert spec.sources["budget"] == spec.sources["seed"] == str(path)
    assert 1e-4 <= spec.config.optimizer.lr <= 1e-3 and 0.1 <= spec.config.reward_weight <= 1


def test_a_bad_place_is_one_clear_line(tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    assert run_benchmark.main(["search", "--out", str(tmp_path / "file" / "inside")]) == 2
    message = capsys.readouterr().err
    assert "cannot be written" in message and message.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "wrong", "message"),
    [
        ("trials = 1", 'trials = "a"', "trials must be int, not 'a'"),
        ("rewards =", "reward =", "did you mean 'rewards'"),
        ("seeds = [3, 4]", "seeds = [3]", "one may be luck"),
        ("widen = 2.0", "widen = 0.5", "widen must be above 1, not 0.5"),
        ("low = 1e-4", "low = 1.0", "space.refl.optimizer.lr goes from 1 to 0.001"),
    ],
)
def test_mistakes_in_the_file(
    text: str, wrong: str, message: str, tiny_folder: Path, tmp_path: Path
):
    path = tmp_path / "mine.toml"
    path.write_text(FILE.replace("TINY", str(tiny_folder)).replace(text, wrong))
    with pytest.raises(UserError) as error:
        search.load(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_only_methods_with_a_space_are_searched():
    assert list(search.narrowed(a_search(), ["ddpo"], ["absence"]).space) == ["ddpo"]
    with pytest.raises(UserError, match="did you mean 'refl'"):
        search.narrowed(a_search(), ["reflo"], [])
