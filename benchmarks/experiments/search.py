"""The recorded hyperparameter search.

Every method gets the same number of trials at the same compute (``search.toml``). The best reward
on the validation prompts wins, among the trials that keep the share ``floor`` of what the base
model has of the held-out rewards; where none does, the trial that keeps most. Writes
``search.json`` and ``search.md`` beside the trials' cells.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.api import UserError
from benchmarks.config import FOLDER, load_preset, method_defaults, read_toml
from benchmarks.experiments.cells import specs
from benchmarks.harness.loop import Harness
from benchmarks.harness.progress import bar
from benchmarks.records.cell import write_json


def judged(cell: Path, reward: str, held_out: Sequence[str]) -> tuple[float, float]:
    """On validation prompts at the end of the budget: the reward, and what share of the base
    model's held-out rewards is left, of the one that lost most."""
    lines = [json.loads(line) for line in (cell / "evals.jsonl").read_text().splitlines()]
    found = {e["fraction"]: e["rewards"] for e in lines if e["split"] == "unseen"}
    first, last = found[0.0], found[1.0]
    return float(last[reward]), min(last[name] / first[name] for name in held_out)


def choose(trials: Sequence[dict[str, Any]], floor: float) -> dict[str, Any]:
    """The trial that wins."""
    kept = [trial for trial in trials if trial["kept"] >= floor]
    if not kept:
        return max(trials, key=lambda trial: trial["kept"])
    return max(kept, key=lambda trial: trial["reward"])


def search(out: Path) -> list[dict[str, Any]]:
    """Run all trials (finished ones are not repeated); one row per trial."""
    plan = read_toml(FOLDER / "experiments" / "search.toml")
    counts = {len(trials) for trials in plan["trials"].values()}
    if len(counts) != 1:
        raise UserError("search.toml: every method must have the same number of trials")
    preset, floor, rows = load_preset(plan["backbone"]), plan["floor"], list[dict[str, Any]]()
    where = {key: plan[key] for key in ("backbone", "reward", "task", "budget")}
    harness = Harness(out)
    for method, trials in plan["trials"].items():
        for i, values in enumerate(trials):
            config = method_defaults(method, preset, (values, f"search.toml, {method}"))
            (spec,) = specs({method: config}, seeds=[plan["seed"]], **where)
            with bar(f"{method}, trial {i + 1} of {len(trials)}") as progress:
                cell = harness.run(spec, progress)
            score, kept = judged(cell, plan["reward"], spec.task.held_out)
            rows.append({"method": method, "values": values, "reward": score, "kept": kept})
    for row in rows:
        row["chosen"] = row is choose([r for r in rows if r["method"] == row["method"]], floor)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/search"))
    out = parser.parse_args(arguments).out
    try:
        out.mkdir(parents=True, exist_ok=True)
        rows = search(out)
    except (UserError, OSError) as error:
        print(f"benchmarks.experiments.search: {error}", file=sys.stderr)
        return 2
    write_json(out / "search.json", rows)
    lines = [
        "| method | values | validation reward | held-out kept | chosen |",
        "|---|---|---:|---:|---|",
    ]
    lines += [
        f"| {r['method']} | `{json.dumps(r['values'])}` | {r['reward']:.3f} | {r['kept']:.0%} | "
        f"{'yes' if r['chosen'] else ''} |"
        for r in rows
    ]
    (out / "search.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
