"""The analysis package on synthetic runs."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis.collect import ReportError, collect
from analysis.curves import looks
from analysis.report import write_report
from analysis.statistics import curve, summarise
from analysis.tables import latex, markdown, table

ROOT = Path(__file__).parents[2]
TRAIN = ["cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer"]
UNSEEN = ["snail", "hippopotamus", "cheetah", "crocodile", "lobster", "octopus"]
GAIN = {"alignprop": 1.6, "ddpo": 0.7, "rwr": 0.3, "refl": 1.2}


def write_cell(
    runs: Path, method: str, seed: int, *, evals: int = 6, images: bool = False,
    finished: bool = True, config: dict[str, object] | None = None, task: str = "animals",
) -> Path:  # fmt: skip
    """One cell in the harness's layout; rewards rise with the square root of the budget."""
    name = f"{method}-{task}-s{seed}-{zlib.crc32(json.dumps(config).encode()) if config else 0}"
    cell = runs / name
    cell.mkdir(parents=True)
    info = {
        "method": method, "task": task, "reward": "jpeg", "reported": ["jpeg", "alignment"],
        "train_reward": "jpeg-soft", "backbone": "emoji", "seed": seed,
        "budget": {"kind": "flops", "amount": 1.2e14},
        "units": {"jpeg": "kB, negative", "alignment": "cosine"}, "config": config or {"lr": 1e-3},
    }  # fmt: skip
    (cell / "cell.json").write_text(json.dumps(info))
    noise = np.random.default_rng([seed, len(method)])
    rows, steps = [], []
    for k in range(evals):
        part = k / (evals - 1) if evals > 1 else 0.0
        cost = {"flops": 1.2e14 * part, "reward_queries": 640 * k, "nfe": 12800 * k,
                "seconds": 60.0 * k}  # fmt: skip
        for split, prompts in (("train", TRAIN), ("unseen", UNSEEN)):
            shift = (0.15 if split == "unseen" else 0.0) + 0.08 * noise.standard_normal() * (k > 0)
            jpeg = -2.2 - shift + GAIN[method] * math.sqrt(part)
            align = 0.62 - 0.1 * GAIN[method] * part**2 - 0.3 * shift
            score = {"jpeg": jpeg, "alignment": align}
            rows.append({
                "step": 20 * k, "fraction": part, "split": split, **cost, "rewards": score,
                "diversity": 0.4 - 0.12 * GAIN[method] * part,
                "per_image": [{"prompt": p, "rewards": score} for p in prompts for _ in (0, 1)],
            })  # fmt: skip
            for step in {0, 20 * (evals - 1)} if images and k == 0 else ():
                folder = cell / "images" / split / f"{step:06d}"
                folder.mkdir(parents=True)
                for i in range(2 * len(prompts)):
                    pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
                    picture = Image.fromarray(pixels // (2 if step else 1))
                    picture.resize((32, 32), 0).save(folder / f"{i:03d}.png")
        steps.append({"step": k, "reward": -2.0, "loss": 1.0, "flops": cost["flops"]})
    (cell / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (cell / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    if finished:
        (cell / "done").touch()
    return cell


def final(cell: Path, split: str = "train", name: str = "jpeg") -> float:
    rows = [json.loads(line) for line in (cell / "evals.jsonl").read_text().splitlines()]
    return float(next(r["rewards"][name] for r in reversed(rows) if r["split"] == split))


def test_few_seeds_give_their_mean_and_no_interval(tmp_path: Path) -> None:
    cells = [write_cell(tmp_path, "ddpo", seed) for seed in range(3)]
    [comparison], failed = collect(tmp_path)
    frame = table(comparison, ["ddpo"])
    result = frame.loc["ddpo", "jpeg, training"]
    assert result.value == pytest.approx(np.mean([final(cell) for cell in cells]))
    assert math.isnan(result.low) and not failed
    assert frame.loc["base model", "jpeg, training"].value == pytest.approx(-2.2)
    assert frame.loc["ddpo", "optimizer steps"].value == 100
    assert frame.loc["ddpo", "TFLOP"].value == pytest.approx(120)
    assert "under-cover" in write_report(tmp_path)


def test_methods_are_ranked_by_the_reward_on_unseen_prompts(tmp_path: Path) -> None:
    for method in sorted(GAIN):
        write_cell(tmp_path, method, 0)
    [comparison], _ = collect(tmp_path)
    frame = table(comparison, sorted(GAIN))
    assert frame.index[0] == "base model"
    scores = [e.value for e in frame["jpeg, unseen"][1:]]
    assert len(scores) > 1 and scores == sorted(scores, reverse=True)


def test_interquartile_mean_resists_an_outlier_and_lies_in_its_interval() -> None:
    values = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, -50.0]
    result = summarise(values)
    assert result.value == pytest.approx(np.mean([1.1, 1.2, 1.3, 1.4]))
    assert result.low <= result.value <= result.high
    assert summarise(values) == result  # fixed stream
    shifted = summarise([value + 3 for value in values])
    assert shifted.low == pytest.approx(result.low + 3)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1).normal(size=(60, 20))
    hits = [(e := summarise(list(row))).low <= 0 <= e.high for row in draws]
    assert np.mean(hits) > 0.8


def test_a_diverged_seed_is_not_left_out() -> None:
    assert math.isnan(summarise([1.0, float("nan"), 2.0]).value)


def test_curve_ends_where_the_shortest_run_does(tmp_path: Path) -> None:
    write_cell(tmp_path, "ddpo", 0, evals=6)
    write_cell(tmp_path, "ddpo", 1, evals=3, finished=False)
    [comparison], _ = collect(tmp_path)
    train = comparison.evals[comparison.evals["split"] == "train"]
    assert len(curve(train, "spent", "jpeg")) == 3
    assert "unfinished: ddpo-animals-s1-0: optimizer step 2" in write_report(tmp_path)


def test_rebuilding_is_idempotent_and_reads_only(tmp_path: Path) -> None:
    for method in GAIN:
        write_cell(tmp_path, method, 0, images=True)
    records = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    first = write_report(tmp_path)
    built = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    names = {p.name for p in built if p.parent == tmp_path}
    fixed = {"reward_curve.png", "reward_curve.pdf", "overoptimisation.png", "table.md"}
    pictures = {f"before_after_{method}.png" for method in GAIN}
    assert names == fixed | {"table.csv", "table.tex"} | pictures
    assert write_report(tmp_path) == first == (tmp_path / "table.md").read_text()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == built
    assert all(built[path] == content for path, content in records.items())
    csv = pd.read_csv(tmp_path / "table.csv")
    assert csv["method"].tolist() == ["base model", "alignprop", "refl", "ddpo", "rwr"]


def test_truncated_last_line_is_ignored_and_a_broken_middle_one_is_reported(tmp_path: Path) -> None:
    good = write_cell(tmp_path, "ddpo", 0)
    expected = write_report(tmp_path)
    for name in ("evals.jsonl", "steps.jsonl"):
        with (good / name).open("a") as file:
            file.write('{"step": 120, "spl')
    assert write_report(tmp_path) == expected
    bad = write_cell(tmp_path, "rwr", 0)
    lines = (bad / "evals.jsonl").read_text().splitlines(keepends=True)
    (bad / "evals.jsonl").write_text("".join([lines[0], '{"step"\n', *lines[1:]]))
    assert "failed: rwr-animals-s0-0: evals.jsonl line 2 is not JSON" in write_report(tmp_path)


def test_repeated_evaluations_of_a_resumed_run_count_once(tmp_path: Path) -> None:
    cell = write_cell(tmp_path, "ddpo", 0)
    expected = write_report(tmp_path)
    text = (cell / "evals.jsonl").read_text()
    (cell / "evals.jsonl").write_text("".join(text.splitlines(keepends=True)[:6]) + text)
    assert write_report(tmp_path) == expected


def test_failed_empty_and_pictureless_cells_are_tolerated(tmp_path: Path) -> None:
    shutil.rmtree(write_cell(tmp_path, "alignprop", 0, images=True) / "images" / "unseen")
    failed = write_cell(tmp_path, "ddpo", 0, finished=False)
    (failed / "failed.json").write_text(json.dumps({"error": "Traceback\nRuntimeError: boom"}))
    (write_cell(tmp_path, "rwr", 0, finished=False) / "evals.jsonl").unlink()
    text = write_report(tmp_path)
    assert "failed: ddpo-animals-s0-0: RuntimeError: boom" in text and "| ddpo" not in text
    assert "| alignprop" in text and "unfinished: rwr" in text
    assert (tmp_path / "before_after_alignprop.png").exists()


def test_only_cells_without_evaluations(tmp_path: Path) -> None:
    (write_cell(tmp_path, "rwr", 0, finished=False) / "evals.jsonl").unlink()
    assert write_report(tmp_path).startswith("No evaluations yet.")


def test_variants_of_a_method_are_not_averaged(tmp_path: Path) -> None:
    for k in (1, 10):
        write_cell(tmp_path, "alignprop", 0, config={"lr": 1e-3, "truncation": {"k": k}})
    [comparison], _ = collect(tmp_path)
    assert {cell.label for cell in comparison.cells} == {"alignprop (k=1)", "alignprop (k=10)"}


def test_tasks_are_not_averaged(tmp_path: Path) -> None:
    write_cell(tmp_path, "ddpo", 0)
    write_cell(tmp_path, "ddpo", 0, task="fruit")
    assert len(collect(tmp_path)[0]) == 2
    assert "fruit, train reward jpeg" in write_report(tmp_path)


def test_looks_are_constant_and_differ() -> None:
    few, many = looks(["ddpo", "zoo"]), looks([*GAIN, "zoo", "apple", "ddpo (k=1)"])
    assert few["ddpo"] == many["ddpo"]
    assert len({(look.color, look.marker) for look in many.values()}) == len(many)


def test_tables_escape(tmp_path: Path) -> None:
    for k in ("a|b", "c_d"):
        write_cell(tmp_path, "ddpo", 0, config={"k_x": k})
    [comparison], _ = collect(tmp_path)
    frame = table(comparison, [cell.label for cell in comparison.cells])
    assert r"k_x=a\|b" in markdown(frame) and r"k\_x=c\_d" in latex(frame)


@pytest.mark.parametrize("case", ["empty", "missing", "cell"])
def test_command_line_error(tmp_path: Path, case: str) -> None:
    where = {"empty": tmp_path, "missing": tmp_path / "no"}.get(case)
    where = where or write_cell(tmp_path, "ddpo", 0)
    with pytest.raises(ReportError):
        write_report(where)
    result = subprocess.run(
        [sys.executable, "-m", "analysis", str(where)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_imports_nothing_that_trains() -> None:
    code = "import sys, analysis.report; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in out.stdout.split()}
    assert not loaded & {"torch", "methods", "rewards", "benchmarks"}
