"""Many cells at once: as processes of this machine, or as Slurm jobs.

Each cell is run from its own file, so that whatever happens to one leaves the others alone. How
they ended is read from their directories.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import registry
from benchmarks.api import UserError
from benchmarks.cli import Launching
from benchmarks.experiments.cells import announce, code_files, run_cells
from benchmarks.harness.spec import Spec
from benchmarks.records import tracking
from benchmarks.records.cell import Cell, refuse_links
from benchmarks.records.state import collect

#: Minutes. A job that reaches its limit is queued again and goes on, TIMEOUTS times at most.
TIME_LIMIT, TIMEOUTS = 60, 1000
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Around:
    """What a launched cell needs besides its file."""

    out: Path
    """Where its directory is."""
    plugins: tuple[Path, ...] = ()
    """The Python files that register what it names."""
    track: tracking.Name | None = None
    """A tracker for its records."""


def run_here_or_launched(
    cells: Sequence[Spec], launching: Launching, around: Around
) -> dict[str, str]:
    """Run cells in this process, or as ``launching`` says, and wait: why some are not done."""
    if launching.launch is None:
        return run_cells(cells, around.out, around.track)[1]
    if launching.jobs is not None and launching.jobs < 1:
        raise UserError(f"--jobs {launching.jobs}: at least 1")
    announce(cells, around.out)
    paths = [Cell(around.out, spec.description()).path for spec in cells]
    if launching.launch == "slurm":
        slurm([Job(path / "cell.json", around) for path in paths], launching, around.out)
    else:
        commands = [
            command(path / "cell.json", spec, around)
            for path, spec in zip(paths, cells, strict=True)
        ]
        local(commands, launching.jobs or 1, around.out)
    ended = collect([around.out])
    return {p.name: " ".join(ended[p.name]).strip() for p in paths if ended[p.name][0] != "done"}


def command(file: Path, spec: Spec, around: Around) -> list[str]:
    """The arguments that run one cell in a process of its own."""
    words = ["run", str(file), "--out", str(around.out)]
    if around.plugins:
        words += ["--plugin", *map(str, around.plugins)]
    if code := code_files([spec]):
        words += ["--held-out", *code]
    if around.track:
        words += ["--track", around.track]
    return words


def local(commands: Sequence[list[str]], jobs: int, out: Path) -> None:
    """Run ``commands``, the arguments of one cell each, ``jobs`` at a time; logs go to ``out``."""
    logs = out / "logs"
    refuse_links(logs)
    logs.mkdir(parents=True, exist_ok=True)
    start = [sys.executable, str(ROOT / "run_benchmark.py")]
    waiting = list(enumerate(commands, 1))
    running = list[subprocess.Popen[bytes]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, words = waiting.pop(0)
                with (logs / f"{number:04d}.log").open("wb") as log:
                    running.append(
                        subprocess.Popen([*start, *words], stdout=log, stderr=subprocess.STDOUT)
                    )
            running = [process for process in running if process.poll() is None]
            time.sleep(0.1)
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait()


@dataclass(frozen=True)
class Job:
    """One cell as a Slurm job; preempted or out of time, it is queued again and goes on."""

    file: Path
    around: Around

    def __call__(self) -> dict[str, str]:
        for plugin in self.around.plugins:
            registry.load_plugin(plugin)
        _, failed = run_cells([Spec.read(self.file)], self.around.out, self.around.track)
        for name, reason in failed.items():
            print(f"{name} failed: {reason}", file=sys.stderr)
        return failed

    def checkpoint(self) -> Any:
        """What submitit queues again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def slurm(jobs: Sequence[Job], launching: Launching, out: Path) -> None:
    """Submit ``jobs`` as an array and wait for them; logs go to ``out``/slurm.

    Everything else is sbatch's own: SBATCH_GPUS=1, SBATCH_ACCOUNT=... in the environment.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--launch slurm needs submitit: pip install submitit") from error
    refuse_links(out / "slurm")
    try:
        executor = submitit.SlurmExecutor(out / "slurm", max_num_timeout=TIMEOUTS)
    except RuntimeError as error:
        raise UserError("--launch slurm: there is no sbatch on this machine") from error
    executor.update_parameters(
        job_name="alignprop-bench",
        time=TIME_LIMIT,
        array_parallelism=launching.jobs or len(jobs),
        additional_parameters={"requeue": True},
        **({"partition": launching.partition} if launching.partition else {}),
    )
    with executor.batch():
        submitted = [executor.submit(job) for job in jobs]
    print(f"{len(submitted)} jobs queued, the first is {submitted[0].job_id}", flush=True)
    try:
        while not all(job.done() for job in submitted):
            time.sleep(2)
    except KeyboardInterrupt:
        print(f"the jobs go on: run_benchmark.py status {out}, or scancel", file=sys.stderr)
        raise
