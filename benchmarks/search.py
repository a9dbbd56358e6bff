"""The recorded hyperparameter search: ``python -m benchmarks.search --out results/search``.

Every method gets the same number of trials at the same compute (``search.toml``); the best reward
on the validation prompts wins. Writes ``search.json`` and ``search.md`` beside the trials' cells.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.api import UserError
from benchmarks.compare import specs
from benchmarks.config import FOLDER, load_preset, method_defaults, read_toml
from benchmarks.harness import Harness
from benchmarks.progress import bar
from benchmarks.store import write_json


def validation_reward(cell: Path, reward: str) -> float:
    """The cell's reward on the validation prompts at the end of its budget."""
    lines = [json.loads(line) for line in (cell / "evals.jsonl").read_text().splitlines()]
    (last,) = (e for e in lines if e["fraction"] == 1.0 and e["split"] == "unseen")
    return float(last["rewards"][reward])


def search(out: Path) -> list[dict[str, Any]]:
    """Run all trials (finished ones are not repeated); one row per trial."""
    plan = read_toml(FOLDER / "search.toml")
    counts = {len(trials) for trials in plan["trials"].values()}
    if len(counts) != 1:
        raise UserError("search.toml: every method must have the same number of trials")
    preset, rows = load_preset(plan["backbone"]), []
    where = {key: plan[key] for key in ("backbone", "reward", "task", "budget")}
    harness = Harness(out)
    for method, trials in plan["trials"].items():
        for i, values in enumerate(trials):
            config = method_defaults(method, preset, (values, f"search.toml, {method}"))
            (spec,) = specs({method: config}, seeds=[plan["seed"]], **where)
            with bar(f"{method}, trial {i + 1} of {len(trials)}") as progress:
                cell = harness.run(spec, progress)
            score = validation_reward(cell, plan["reward"])
            rows.append({"method": method, "values": values, "reward": score})
    for row in rows:
        row["chosen"] = row["reward"] == max(
            r["reward"] for r in rows if r["method"] == row["method"]
        )
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
        print(f"benchmarks.search: {error}", file=sys.stderr)
        return 2
    write_json(out / "search.json", rows)
    lines = ["| method | values | validation reward | chosen |", "|---|---|---:|---|"]
    lines += [
        f"| {r['method']} | `{json.dumps(r['values'])}` | {r['reward']:.4f} | "
        f"{'yes' if r['chosen'] else ''} |"
        for r in rows
    ]
    (out / "search.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
