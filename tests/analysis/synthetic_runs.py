"""Synthetic runs in the harness's layout."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from analysis.collect import Collected, Comparison, collect

TRAIN = ["cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer"]
UNSEEN = ["snail", "hippopotamus", "cheetah", "crocodile", "lobster", "octopus"]
GAIN = {"alignprop": 1.6, "ddpo": 0.7, "rwr": 0.3, "refl": 1.2}
Curve = Callable[[float], float]
MEASURES = ("diversity", "vendi", "drift", "collapse")


def _spread(score: dict[str, float], index: int) -> dict[str, float]:
    return {name: value + 0.3 * math.cos(7 * index) for name, value in score.items()}


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
    gain = GAIN.get(method, 0.1 * len(method))
    noise = np.random.default_rng([seed, len(method)])
    rows, steps = [], []
    for k in range(evals):
        part = k / (evals - 1) if evals > 1 else 0.0
        cost = {"flops": 1.2e14 * part, "reward_queries": 640 * k, "nfe": 12800 * k,
                "seconds": 60.0 * k}  # fmt: skip
        for split, prompts in (("train", TRAIN), ("unseen", UNSEEN)):
            shift = (0.15 if split == "unseen" else 0.0) + 0.08 * noise.standard_normal() * (k > 0)
            jpeg = -2.2 - shift + gain * math.sqrt(part)
            align = 0.62 - 0.1 * gain * part**2 - 0.3 * shift
            score = {"jpeg": jpeg, "alignment": align}
            rows.append({
                "step": 20 * k, "fraction": part, "split": split, **cost, "rewards": score,
                "diversity": 0.4 - 0.12 * gain * part, "vendi": 8 - gain * part,
                "drift": 0.1 * gain * part, "collapse": 0.3 + 0.1 * gain * part,
                "per_image": [
                    {"prompt": p, "rewards": _spread(score, i)}
                    for i, p in enumerate(q for q in prompts for _ in (0, 1))
                ],
            })  # fmt: skip
            for step in {0, 40, 20 * (evals - 1)} if images and k == 0 else ():
                folder = cell / "images" / split / f"{step:06d}"
                folder.mkdir(parents=True)
                for i in range(2 * len(prompts)):
                    draw = np.random.default_rng([i, len(method) if step else 0])
                    pixels = draw.integers(0, 256, (8, 8, 3), np.uint8)
                    picture = Image.fromarray(pixels // (2 if step else 1))
                    picture.resize((32, 32), 0).save(folder / f"{i:03d}.png")
        steps.append({"step": k, "reward": -2.0, "loss": 1.0, "flops": cost["flops"]})
    (cell / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (cell / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    if finished:
        (cell / "done").touch()
    return cell


def write_climb(runs: Path, method: str, seed: int, reward: Curve, part: float = 1.0) -> Path:
    """A cell whose training reward is that of the share of the budget, at 11 evaluations.

    ``part``: its budget, in those of the others.
    """
    cell = write_cell(runs, method, seed, evals=11)
    lines = [json.loads(line) for line in (cell / "evals.jsonl").read_text().splitlines()]
    for line in lines:
        for counter in ("flops", "reward_queries", "seconds"):
            line[counter] *= part
        shift = reward(line["fraction"] * part) - line["rewards"]["jpeg"]
        line["rewards"]["jpeg"] += shift
        for picture in line["per_image"]:
            picture["rewards"]["jpeg"] += shift
    (cell / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = json.loads((cell / "cell.json").read_text())
    info["budget"]["amount"] *= part
    (cell / "cell.json").write_text(json.dumps(info))
    return cell


def made(
    runs: Path, fast: Curve, slow: Curve, seeds: int, spread: float = 0.0, part: float = 1.0
) -> Comparison:
    """Two methods; the runs of ``fast`` are spread around its curve. ``part``: the slow one's."""
    labels = {}
    for seed in range(seeds):
        shift = spread * (seed - (seeds - 1) / 2)
        cell = write_climb(runs, "alignprop", seed, lambda p, s=shift: fast(p) + s * (p > 0))
        labels[cell.name] = "alignprop"
        labels[write_climb(runs, "ddpo", seed, slow, part).name] = "ddpo"
    [found] = collect(runs, only=labels).comparisons
    return found


def final(cell: Path, split: str = "train", name: str = "jpeg") -> float:
    rows = [json.loads(line) for line in (cell / "evals.jsonl").read_text().splitlines()]
    return float(next(r["rewards"][name] for r in reversed(rows) if r["split"] == split))


def write_evaluation(runs: Path, kind: str) -> Path:
    """One ``evaluate --sweep 3`` or ``--parts 3`` in its layout, with pictures."""
    folder = runs / f"evaluate-{kind}-0"
    sweep = [("0", [0.0], [0, 1]), ("0.5", [0.5], [0, 1]), ("1", [1.0], [0, 1])]
    parts = [(f"first {k}/3", [1.0], [0, k / 3]) for k in (1, 2)]
    parts += [(f"last {3 - k}/3", [1.0], [k / 3, 1]) for k in (1, 2)]
    parts += [("whole chain", [1.0], [0, 1])]
    lines = []
    for number, (name, mix, part) in enumerate(
        [("base model", [], [0, 1]), *(sweep if kind == "sweep" else parts)]
    ):
        for split, prompts in (("train", TRAIN), ("unseen", UNSEEN)):
            size = sum(mix) * (part[1] - part[0])
            score = {"jpeg": -2.2 + 0.5 * size, "alignment": 0.6 - 0.1 * size**2}
            record = {"candidate": number, "name": name, "coefficients": mix, "part": part,
                      "split": split, "rewards": score,
                      "per_image": [{"prompt": p, "rewards": score} for p in prompts]}  # fmt: skip
            lines.append(record | {m: 0.3 + 0.1 * size for m in MEASURES})
            pictures = folder / "images" / split / f"{number:06d}"
            pictures.mkdir(parents=True)
            for i in range(len(prompts)):
                Image.new("RGB", (16, 16), (60 * number, 20 * i, 99)).save(
                    pictures / f"{i:03d}.png"
                )
    (folder / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = {"kind": kind, "backbone": "emoji", "reward": "jpeg", "units": {"jpeg": "kB, negative"},
            "checkpoints": [{"path": "runs/alignprop", "method": "alignprop", "seed": 0,
                             "reward": "jpeg"}]}  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(info))
    return folder


def comparison(runs: Path) -> Comparison:
    """The only one that the runs make."""
    [found] = collect(runs).comparisons
    return found


def guarded(cell: Path, kept: list[bool]) -> None:
    """Write the guard's verdict into the training evaluations of a cell, and its floors."""
    lines = [json.loads(line) for line in (cell / "evals.jsonl").read_text().splitlines()]
    for line in lines:
        if line["split"] == "train":
            line |= {"kept": kept[line["step"] // 20], "floors": {"judge": -0.31}}
    (cell / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def same(one: Collected, other: Collected) -> None:
    """The same numbers; notes aside."""
    assert [c.title for c in one.comparisons] == [c.title for c in other.comparisons]
    for mine, theirs in zip(one.comparisons, other.comparisons, strict=True):
        pd.testing.assert_frame_equal(mine.evals, theirs.evals)
