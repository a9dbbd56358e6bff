"""The circumstances of a run, for ``cell.json``; no part of a cell's identity."""

from __future__ import annotations

import functools
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.distributed import processes


def circumstances(device: torch.device) -> dict[str, Any]:
    """Device, processes, threads, Python and the state of this checkout."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "processes": processes(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "git": git(),
    }


@functools.cache
def git() -> dict[str, Any] | None:
    """The commit, and whether tracked files differ from it; None outside of a repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "changed": bool(changes)}


def _git(*command: str) -> str:
    folder = Path(__file__).parent
    run = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout.strip()
