"""``python -m analysis.coverage [ROOT]``: measure how often our intervals hold the truth.

Runs are simulated from known distributions, and each interval that the reports print is made of
them. Writes ``ROOT/coverage.json`` (default: results), from which the results page draws its table.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from analysis.records import read_json
from analysis.report import write
from analysis.sheets import Sheet, Value, point
from analysis.statistics import RESAMPLES, Layout, estimate, interquartile_mean, values_of_runs

FILE = "coverage.json"
SEEDS = (5, 10)
SAMPLES = 2000
#: Of a simulated evaluation: prompts, pictures of each.
PROMPTS, EACH = 15, 2

Random = np.random.Generator
#: How runs differ: mean 0, deviation 1. The last is the shape of a method of which one run in five
#: explodes.
SHAPES: dict[str, Callable[[Random, int], np.ndarray]] = {
    "normal": lambda random, n: random.standard_normal(n),
    "t3": lambda random, n: random.standard_t(3, n) / math.sqrt(3),
    "lognormal": lambda random, n: (
        (random.lognormal(0, 1, n) - math.exp(0.5)) / math.sqrt((math.e - 1) * math.e)
    ),
    "one in five explodes": lambda random, n: (
        (random.standard_normal(n) + 5 * (random.random(n) < 0.2) - 1) / math.sqrt(5)
    ),
}


def truth(shape: str) -> float:
    """The interquartile mean of very many runs."""
    return float(interquartile_mean(SHAPES[shape](np.random.default_rng(99), 1_000_001)))


def layout(random: Random, shape: str, seeds: int, prompts: int = PROMPTS) -> Layout:
    """Runs of this shape, looked at with pictures as uneven as runs are: the error of either is
    about as large."""
    names = tuple(f"prompt {i}" for i in range(prompts) for _ in range(EACH))
    ours = SHAPES[shape](random, seeds)[:, None]
    scale = math.sqrt(prompts / seeds)
    theirs = scale * np.repeat(random.standard_normal(prompts), EACH)
    pictures = 0.5 * scale * random.standard_normal(len(names))
    rest = 0.5 * random.standard_normal((seeds, len(names)))
    return Layout(ours + theirs + pictures + rest, names)


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The percentile bootstrap of the interquartile mean, over runs alone: what is not used."""
    n = len(values)
    drawn = values[np.random.default_rng(0).integers(n, size=(RESAMPLES, n))]
    low, high = np.quantile(interquartile_mean(drawn), [0.025, 0.975])
    return float(low), float(high)


def measure(shape: str, seeds: int, samples: int = SAMPLES) -> dict[str, float]:
    """The share of intervals that hold the truth: of runs alone (ours, and the percentile
    bootstrap's), and of runs with prompts and pictures (ours)."""
    random, at = np.random.default_rng([seeds, len(shape)]), truth(shape)
    hits = np.zeros(3)
    for _ in range(samples):
        values = SHAPES[shape](random, seeds)
        alone, both = (
            estimate(values_of_runs(values.tolist())),
            estimate(layout(random, shape, seeds)),
        )
        low, high = percentiles(values)
        hits += [alone.low <= at <= alone.high, both.low <= at <= both.high, low <= at <= high]
    alone_, both_, other = (hits / samples).tolist()
    return {"runs": alone_, "runs, prompts and pictures": both_, "percentile bootstrap": other}


def sheet(root: Path) -> Sheet | None:
    """What was measured; None if it was not."""
    if not (root / FILE).is_file():
        return None
    found = read_json(root / FILE)
    rows: list[dict[str, Value]] = [
        {"runs differ": row["shape"], "seeds": str(row["seeds"])}
        | {name: point(value) for name, value in row["coverage"].items()}
        for row in found["rows"]
    ]
    note = (
        "How often an interval that says 95 % holds the truth (the interquartile mean of very many "
        f"runs), in {found['samples']:,} simulated experiments each, +- 0.01. *runs*: runs alone "
        "vary; *runs, prompts and pictures*: their error is as large as that of the runs. The "
        "percentile bootstrap over runs, which is often used, is not ours. Measured by "
        "`python -m analysis.coverage`."
    )
    title = "Coverage of the intervals, measured"
    return Sheet(title=title, note=note, columns=list(rows[0]), rows=rows)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m analysis.coverage", description=__doc__)
    parser.add_argument("root", type=Path, nargs="?", default=Path("results"), metavar="ROOT")
    root = parser.parse_args().root
    rows = [
        {"shape": shape, "seeds": seeds, "coverage": measure(shape, seeds)}
        for seeds in SEEDS
        for shape in SHAPES
    ]
    text = json.dumps({"samples": SAMPLES, "rows": rows}, indent=1)
    try:
        write(root / FILE, f"{text}\n".encode())
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for row in rows:
        print(row["shape"], row["seeds"], row["coverage"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
