"""Tables of what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARTS = ("speed", "levers", "growth")
COMMANDS = {"speed": "", "levers": " --levers", "growth": " --growth"}


def write(folder: Path) -> None:
    """``README.md`` from the JSON files that are there."""
    blocks = ["# Speed\n\nWritten by `python -m benchmarks.speed`; see `docs/performance.md`."]
    for name in PARTS:
        if (path := folder / f"{name}.json").exists():
            blocks.append(text(name, json.loads(path.read_text())))
    (folder / "README.md").write_text("\n\n".join(blocks) + "\n")


def text(name: str, result: dict[str, Any]) -> str:
    """One part in Markdown."""
    lines = {"speed": _speed, "levers": _levers, "growth": _growth}[name](result)
    return "\n".join([*_head(name, result), *lines])


def _head(name: str, result: dict[str, Any]) -> Iterator[str]:
    machine = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
    yield f"## `python -m benchmarks.speed{COMMANDS[name]}`"
    yield ""
    yield (
        f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores, {machine['threads']} "
        f"threads, {machine['memory_gib']} GiB, load {machine['load']} at the start; Python "
        f"{machine['python']}, {versions}; {result['took_seconds']} s."
    )
    yield ""


def _speed(result: dict[str, Any]) -> Iterator[str]:
    yield (
        "| work | model | TRL's time / ours | ours / ideal loop | seconds: ours | TRL | ideal "
        "| peak MB: ours | TRL |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for row in result["rows"]:
        what = f"{row['work']}, {row['precision']}"
        model = f"{row['model']}{', --compile' if row.get('compile') else ''}"
        where = f"{model}, batch {row['batch']}, {row['steps']} steps"
        if "skipped" in row:
            yield f"| {what} | {where} | {row['skipped']} | | | | | | |"
            continue
        trl, ideal = row["trl_over_ours"]["median"], row["ours_over_ideal"]["median"]
        seconds = [_median(row["seconds"][who]) for who in ("ours", "trl", "ideal")]
        cells = [
            what,
            where,
            f"{trl:.2f} (at least {row['target_trl_over_ours']:g})",
            f"{ideal:.2f} (at most {row['target_ours_over_ideal']:g})",
            *(f"{s:.2f}" for s in seconds),
            *_megabytes(row["peak_bytes"], "ours", "trl"),
        ]
        yield f"| {' | '.join(cells)} |"
    if startup := result.get("startup"):
        waits = ", ".join(
            f"{name} {_median(seconds):.2f} s (at most {startup['target_seconds'][name]:g} s)"
            for name, seconds in startup["seconds"].items()
        )
        yield ""
        yield f"From the start of `run_benchmark.py` to its {waits}."
    if memory := result.get("memory"):
        yield ""
        yield from _memory(memory)


def _memory(memory: dict[str, Any]) -> Iterator[str]:
    planned = ", ".join(f"{k} {v / 1e9:.2f} GB" for k, v in memory["planned_bytes"].items())
    check = memory["check"]
    yield (
        "SD v1.5, full backpropagation, batch 1, 50 steps, 16 bits, by the planner, weights "
        f"included: {planned} (at most {memory['target_bytes'] / 1e9:g} GB). The planner beside a "
        f"measurement, the same shape at {check['pixels']} pixels and {check['steps']} steps, "
        "32 bits, weights not counted:"
    )
    yield ""
    yield "| kept | planned MB | measured MB | planned / measured |"
    yield "|---|---:|---:|---:|"
    for keep, found in check.get("keep", check.get("plans", {})).items():
        planned_mb, real = found["planned_bytes"] / 1e6, found["measured_bytes"] / 1e6
        yield f"| {keep} | {planned_mb:,.0f} | {real:,.0f} | {planned_mb / real:.3f} |"


def _levers(result: dict[str, Any]) -> Iterator[str]:
    yield f"Embedded model, batch {result['batch']}, {result['steps']} sampling steps, fp32."
    yield ""
    yield "| lever | time without / with (least to most) | peak MB: with | without |"
    yield "|---|---:|---:|---:|"
    for name, found in result["levers"].items():
        gain = found["gain"]
        yield (
            f"| {name} | {gain['median']:.3f} ({gain['least']:.3f} to {gain['most']:.3f}) "
            f"| {' | '.join(_megabytes(found['peak_bytes'], 'with', 'without'))} |"
        )


def _megabytes(peaks: dict[str, float] | None, *names: str) -> list[str]:
    """Compiled code has no peaks: its tensors are not counted."""
    return [f"{peaks[name] / 1e6:,.0f}" if peaks else "-" for name in names]


def _growth(result: dict[str, Any]) -> Iterator[str]:
    yield "AlignProp on the embedded model, latents kept. ![growth](growth.png)"
    yield ""
    yield "| grows | seconds at each value | seconds each | off the line at most | peak MB |"
    yield "|---|---|---:|---:|---|"
    for name, points in result["growth"].items():
        each = ", ".join(
            f"{n}: {s:.2f}" for n, s in zip(points["values"], points["seconds"], strict=True)
        )
        peaks = ", ".join(f"{p / 1e6:,.0f}" for p in points["peak_bytes"])
        yield (
            f"| {name} | {each} | {points['seconds_each']:.3f} "
            f"| {points['largest_deviation']:.1%} | {peaks} |"
        )


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else sum(ordered[middle - 1 : middle + 1]) / 2
