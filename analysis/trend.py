"""``python -m analysis.trend DIR``: does the training reward rise, and a placebo's not?

For each method the slope per optimizer step, by least squares in each run, and its t: the mean
slope of the runs over their errors, added. It asks whether there is a signal at all, before
anything is run at scale; it is no verdict on methods.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from analysis.records import read_json, read_lines


@dataclass(frozen=True)
class Line:
    """A straight line through one run's training rewards."""

    slope: float
    """Per optimizer step, in the reward's unit."""
    error: float
    """Its standard error."""
    steps: int


def line(rewards: Sequence[float]) -> Line:
    """Least squares over the steps in order; at least three."""
    fit = stats.linregress(np.arange(len(rewards)), rewards)
    return Line(float(fit.slope), float(fit.stderr), len(rewards))


def together(lines: Sequence[Line]) -> tuple[float, float]:
    """The mean slope of several runs, and its t."""
    slope = sum(one.slope for one in lines) / len(lines)
    error = math.sqrt(sum(one.error**2 for one in lines)) / len(lines)
    return slope, slope / error


def rows(folder: Path) -> Iterator[str]:
    """A Markdown table: one row per method, reward and arm."""
    runs: dict[tuple[str, str, str], list[Line]] = {}
    for path in sorted(folder.glob("*/cell.json")):
        info = read_json(path)
        arm = "placebo" if info.get("placebo") else "reward"
        rewards = [step["reward"] for step in read_lines(path.parent / "steps.jsonl", [])]
        if len(rewards) > 2:
            key = (str(info["method"]), str(info["reward"]), arm)
            runs.setdefault(key, []).append(line(rewards))
    yield "| method | reward | trained on | runs | steps each | slope per step | t |"
    yield "|---|---|---|---:|---:|---:|---:|"
    for (method, reward, arm), lines in sorted(runs.items()):
        slope, t = together(lines)
        steps = min(one.steps for one in lines)
        yield f"| {method} | {reward} | {arm} | {len(lines)} | {steps} | {slope:.4g} | {t:.1f} |"


def main(arguments: Sequence[str]) -> None:
    """Print the table of one directory of runs."""
    if len(arguments) != 1:
        raise SystemExit("python -m analysis.trend DIR")
    print("\n".join(rows(Path(arguments[0]))))


if __name__ == "__main__":
    main(sys.argv[1:])
