"""Break-even of choosing and training, on numbers counted by hand."""

import json
import math
from pathlib import Path

import pytest

from analysis.break_even import break_even, markdown
from analysis.records import ReportError

HEAD = {
    **{"backbone": "emoji", "task": "t", "reward": "r", "units": {"r": "points"}},
    **{"evaluation": {"sampling_steps": 2}},
}


def row(name: str, candidates: int, reward: float, flops: float) -> dict:
    paid = {"flops": flops, "reward_queries": float(candidates)}
    head = {"name": name, "candidates": candidates, "split": "unseen", "per_picture": paid}
    return head | {"rewards": {"r": reward}}


@pytest.fixture
def selection(tmp_path: Path) -> Path:
    rows = [
        row("base model", 1, 1.0, 2e9),
        row("best-of-n", 2, 1.5, 4e9),
        row("best-of-n", 8, 2.0, 16e9),
    ]
    folder = tmp_path / "select-1"
    folder.mkdir()
    described = HEAD | {"prompts": {"unseen": ["a"]}, "rows": rows}
    (folder / "selection.json").write_text(json.dumps(described))
    return folder


def cell(out: Path, method: str, seed: int, reward: float, flops: float, **changes) -> None:
    folder = out / f"{method}-{seed}"
    folder.mkdir(parents=True)
    about = {"method": method, "seed": seed, "reported": ["r"], "prompts": {"train": ["a"]}}
    about |= {"budget": {"kind": "flops", "amount": flops}}
    (folder / "cell.json").write_text(json.dumps(HEAD | about | changes))
    record = {"split": "unseen", "flops": flops, "rewards": {"r": reward}}
    record |= {"reward_queries": 1, "nfe": 1, "seconds": 1.0}
    ends = [record | {"step": 0, "fraction": 0.0}, record | {"step": 1, "fraction": 1.0}]
    (folder / "evals.jsonl").write_text("".join(json.dumps(e) + "\n" for e in ends))
    (folder / "done").touch()


def test_both_have_cost_the_same():
    assert break_even(140e9, 16e9, 2e9) == 10
    assert break_even(1e9, 2e9, 2e9) == math.inf


def test_the_table_counts_pictures(selection: Path, tmp_path: Path):
    out = tmp_path / "runs"
    cell(out, "m", 0, 1.6, 100e9)
    cell(out, "m", 1, 1.8, 180e9)  # two seeds: 1.7 for 140 GFLOPs
    cell(out, "high", 0, 9.0, 7e9)
    cell(out, "elsewhere", 0, 9.0, 7e9, task="other")
    text = markdown(selection, [out])
    assert "| best-of-n | 2 | 1.5 | 4 | 2 | 4 (+7.5) | 70 (+0.2) |" in text
    assert "| base model | 1 | 1 | 2 | 1 | never (+8) | never (+0.7) |" in text
    assert "the 1.7 of m is best-of-n of 8; training is cheaper from 10 pictures on" in text
    assert "No arm here reaches the 9 of high." in text and "elsewhere" not in text


def test_without_cells_it_is_the_curve_alone(selection: Path, tmp_path: Path):
    assert "| best-of-n | 8 | 2 | 16 | 8 |" in markdown(selection, [])
    with pytest.raises(ReportError, match="no finished cell of backbone 'emoji'"):
        markdown(selection, [tmp_path])
