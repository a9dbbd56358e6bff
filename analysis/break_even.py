"""Choosing against training: after how many pictures training has been cheaper.

A trained cell has cost F FLOPs and pays c per picture, as the base model does; a selection has cost
nothing and pays s per picture. Both have cost the same after F / (s - c) pictures. Before that the
selection is cheaper, after it the cell; which of them has the higher reward stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.records import SPLITS, Note, ReportError, read_evals, read_json

#: Of a cell and of a record of selections: what must be the same for their rewards to compare.
SAME = ("backbone", "reward", "evaluation")


@dataclass(frozen=True)
class Trained:
    """All cells of one method, seeds together."""

    method: str
    seeds: int
    flops: float
    """Mean of what their training cost."""
    rewards: Mapping[str, float]
    """Mean at the end, by split."""


def trained(info: Mapping[str, Any], roots: Sequence[Path]) -> list[Trained]:
    """The finished cells below ``roots`` whose evaluation is that of the record ``info``.

    Raises ReportError if there is none.
    """
    ends: dict[str, list[tuple[float, dict[str, float]]]] = {}
    for cell in sorted(path for root in roots for path in root.glob("*/cell.json")):
        head = read_json(cell)
        asked = head.get("prompts") or {}
        alike = all(head.get(key) == info[key] for key in SAME) and head.get("task") == info["task"]
        if not alike or not (cell.parent / "done").exists() or not asked:
            continue
        notes: list[Note] = []
        evals = read_evals(cell.parent, head, notes)
        if evals.empty:
            continue
        last = evals[evals["fraction"] == evals["fraction"].max()].set_index("split")
        flops = float(last["flops"].max())
        rewards = {str(split): float(v) for split, v in last[info["reward"]].items()}
        ends.setdefault(str(head["method"]), []).append((flops, rewards))
    if not ends and roots:
        same = ", ".join(f"{key} {info[key]!r}" for key in ("backbone", "task", "reward"))
        raise ReportError(f"--against: no finished cell of {same} and the same evaluation")
    return [
        Trained(
            method,
            len(cells),
            sum(flops for flops, _ in cells) / len(cells),
            {
                split: sum(rewards[split] for _, rewards in cells) / len(cells)
                for split in cells[0][1]
            },
        )
        for method, cells in ends.items()
    ]


def break_even(training: float, selection: float, base: float) -> float:
    """Pictures after which both have cost the same; infinite if the selection never costs more."""
    return training / (selection - base) if selection > base else math.inf


def table(info: Mapping[str, Any], cells: Sequence[Trained], split: str) -> list[list[str]]:
    """Header and rows: what each arm gets and pays, and where each cell breaks even with it."""
    rows = [row for row in info["rows"] if row["split"] == split]
    base = rows[0]["per_picture"]["flops"]
    head = ["arm", "candidates", info["reward"], "GFLOPs per picture", "queries per picture"]
    lines = [head + [f"pictures until {cell.method} is as cheap (its reward)" for cell in cells]]
    for row in rows:
        reward, cost = row["rewards"][info["reward"]], row["per_picture"]
        line = [row["name"], str(row["candidates"]), f"{reward:.4g}", f"{cost['flops'] / 1e9:.4g}"]
        line.append(f"{cost['reward_queries']:g}")
        for cell in cells:
            count = break_even(cell.flops, cost["flops"], base)
            shown = f"{math.ceil(count)}" if count < math.inf else "never"
            line.append(f"{shown} ({cell.rewards[split] - reward:+.4g})")
        lines.append(line)
    for cell in cells:
        name = f"{cell.method}, {cell.seeds} seed{'s' if cell.seeds > 1 else ''}"
        line = [name, "1", f"{cell.rewards[split]:.4g}", f"{base / 1e9:.4g}", "0"]
        lines.append(line + [f"{cell.flops / 1e12:.4g} TFLOPs to train"] + [""] * (len(cells) - 1))
    return lines


def sentences(info: Mapping[str, Any], cells: Sequence[Trained], split: str) -> list[str]:
    """For each method: the cheapest arm that reaches its reward, and until when it is cheaper."""
    rows = [row for row in info["rows"] if row["split"] == split]
    base, said = rows[0]["per_picture"]["flops"], []
    for cell in cells:
        goal = cell.rewards[split]
        able = [row for row in rows if row["rewards"][info["reward"]] >= goal]
        if not able:
            said.append(f"No arm here reaches the {goal:.4g} of {cell.method}.")
            continue
        best = min(able, key=lambda row: float(row["per_picture"]["flops"]))
        count = break_even(cell.flops, best["per_picture"]["flops"], base)
        arm = f"{best['name']} of {best['candidates']}"
        if count == math.inf:
            said.append(f"{best['name']} reaches the {goal:.4g} of {cell.method} at no cost.")
            continue
        said.append(
            f"The cheapest arm that reaches the {goal:.4g} of {cell.method} is {arm}; training is "
            f"cheaper from {math.ceil(count)} pictures on."
        )
    return said


def markdown(folder: Path, against: Sequence[Path]) -> str:
    """Tables and sentences for each split. Raises ReportError."""
    info = read_json(folder / "selection.json")
    cells = trained(info, against)
    parts = [f"# {info['reward']} ({info['units'][info['reward']]}) without training"]
    for split in info["prompts"]:
        head, *rows = table(info, cells, split)
        lines = [head, ["---"] * len(head), *rows]
        parts.append(f"## {SPLITS.get(split, split)} prompts")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        parts += sentences(info, cells, split)
    return "\n\n".join(parts) + "\n"
