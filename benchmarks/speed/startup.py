"""How long a user waits: for the command's help, and for the main job's first optimizer step."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.api import UserError

COMMAND = [sys.executable, str(Path(__file__).parents[2] / "run_benchmark.py")]
#: At most so many seconds.
TARGETS = {"--help": 0.5, "first optimizer step": 15.0}
ROUNDS = 3


def measure() -> dict[str, Any]:
    """Seconds from the start of the command until its help is shown, or the step is recorded."""
    waits = {"--help": _help, "first optimizer step": _first_step}
    seconds = {name: [wait() for _ in range(ROUNDS)] for name, wait in waits.items()}
    return {"seconds": seconds, "target_seconds": TARGETS}


def _help() -> float:
    began = time.perf_counter()
    subprocess.run([*COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _first_step() -> float:
    with TemporaryDirectory() as out:
        began = time.perf_counter()
        job = subprocess.Popen(
            [*COMMAND, "--out", out], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while not any(file.stat().st_size for file in Path(out).glob("*/steps.jsonl")):
                if job.poll() is not None:
                    raise UserError("the main job ended before its first optimizer step")
                time.sleep(0.02)
            return time.perf_counter() - began
        finally:
            job.terminate()
            job.wait()
