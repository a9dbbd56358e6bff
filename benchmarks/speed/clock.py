"""Timing in turns: what is compared runs side by side, and ratios are taken within a round."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.forecast.live_bytes import Live

Seconds = dict[str, list[float]]


def in_turns(contenders: Mapping[str, Callable[[], None]], rounds: int) -> Seconds:
    """Seconds of each contender in each round, after one round that does not count."""
    found: Seconds = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            spent = _seconds(run)
            if turn:
                found[name].append(spent)
    return found


def _seconds(run: Callable[[], None]) -> float:
    _wait()
    start = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(seconds: Seconds, one: str, other: str) -> dict[str, float]:
    """How many times longer ``one`` takes: the median over rounds, the least and the most."""
    each = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
    return {"median": statistics.median(each), "least": min(each), "most": max(each)}


def peak(run: Callable[[], None]) -> int:
    """Most bytes alive at once of tensors that ``run`` made; the weights do not count."""
    with Live() as live:
        run()
    return live.peak


def native_bf16() -> bool:
    """Whether this machine multiplies bfloat16 in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return any(able.get(unit) for unit in ("avx512_bf16", "amx_bf16", "bf16"))


def circumstances() -> dict[str, Any]:
    """The machine and the versions; ``load`` is that of the last minute, before anything ran."""
    import psutil

    return {
        "cpu": _cpu(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "native_bf16": native_bf16(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {n: _version(n) for n in ("torch", "diffusers", "peft", "transformers", "trl")},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    able = torch.cpu.get_capabilities()
    widest = next((k for k in ("amx_tile", "avx512_f", "avx2") if able.get(k)), "")
    return f"{able.get('cpu_name') or platform.processor() or platform.machine()} {widest}".strip()
