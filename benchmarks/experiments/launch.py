"""Many cells at once: ``--launch local --jobs N``, or ``--launch slurm --partition P``.

Each cell is a command of its own, the one that was given with ``--shard I/N``, so that whatever
happens to one leaves the others alone. How they ended is read from their directories.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.api import UserError
from benchmarks.harness.loop import Spec
from benchmarks.records.cell import Cell
from benchmarks.records.state import collect

#: Minutes. A job that reaches its limit is queued again and goes on, TIMEOUTS times at most.
TIME_LIMIT, TIMEOUTS = 60, 1000
ROOT = Path(__file__).parents[2]


def parse_shard(text: str) -> slice:
    """``I/N`` to the slice with every N-th item from the I-th, counted from 1."""
    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
        return slice(int(index) - 1, None, int(count))
    raise UserError(f"--shard {text}: write I/N with I from 1 to N")


def run_launched(
    launcher: str,
    arguments: Sequence[str],
    cells: Sequence[Spec],
    mine: Sequence[int],
    *,
    jobs: int | None,
    out: Path,
    partition: str | None,
) -> dict[str, str]:
    """Run the cells of these indices and wait: what is not done in the end, and why."""
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: at least 1")
    commands = [alone(arguments, i, len(cells)) for i in mine]
    if launcher == "slurm":
        slurm(commands, jobs or len(commands), out, partition)
    else:
        local(commands, jobs or 1, out)
    ended = collect([out])
    names = [Cell(out, cells[i].description()).path.name for i in mine]
    return {n: " ".join(ended[n]).strip() for n in names if ended[n][0] != "done"}


def alone(arguments: Sequence[str], index: int, count: int) -> list[str]:
    """The arguments that run only cell ``index`` (from 0) of ``count``, in this process."""
    kept, rest = list[str](), iter(arguments)
    for argument in rest:
        name, equals, _ = argument.partition("=")
        if name not in ("--launch", "--jobs", "--partition"):
            kept.append(argument)
        elif not equals:
            next(rest)  # its value
    return [*kept, "--shard", f"{index + 1}/{count}"]


def local(commands: Sequence[list[str]], jobs: int, out: Path) -> None:
    """Run ``commands``, the arguments of one cell each, ``jobs`` at a time; logs go to ``out``."""
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    start = [sys.executable, str(ROOT / "run_benchmark.py")]
    waiting, running = list(enumerate(commands, 1)), list[subprocess.Popen[bytes]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, command = waiting.pop(0)
                with (logs / f"{number:04d}.log").open("wb") as log:
                    running.append(
                        subprocess.Popen([*start, *command], stdout=log, stderr=subprocess.STDOUT)
                    )
            running = [process for process in running if process.poll() is None]
            time.sleep(0.1)
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait()


class Job:
    """One cell as a Slurm job; preempted or out of time, it is queued again and goes on."""

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments

    def __call__(self) -> int:
        from run_benchmark import main

        return main(self.arguments)

    def checkpoint(self) -> Any:
        """What submitit queues again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def slurm(commands: Sequence[list[str]], jobs: int, out: Path, partition: str | None) -> None:
    """Submit ``commands`` as an array of jobs and wait for them; logs go to ``out``/slurm.

    Everything else is sbatch's own: SBATCH_GPUS=1, SBATCH_ACCOUNT=... in the environment.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--launch slurm needs submitit: pip install submitit") from error
    try:
        executor = submitit.SlurmExecutor(out / "slurm", max_num_timeout=TIMEOUTS)
    except RuntimeError as error:
        raise UserError("--launch slurm: there is no sbatch on this machine") from error
    executor.update_parameters(
        job_name="alignprop-bench",
        time=TIME_LIMIT,
        array_parallelism=jobs,
        additional_parameters={"requeue": True},
        **({"partition": partition} if partition else {}),
    )
    with executor.batch():
        submitted = [executor.submit(Job(command)) for command in commands]
    print(f"{len(submitted)} jobs queued, the first is {submitted[0].job_id}", flush=True)
    try:
        while not all(job.done() for job in submitted):
            time.sleep(2)
    except KeyboardInterrupt:
        print(f"the jobs go on: run_benchmark.py status {out}, or scancel", file=sys.stderr)
        raise
