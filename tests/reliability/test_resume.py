"""A run that is killed goes on to the end it would have had."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run_benchmark
from benchmarks import harness, registry
from benchmarks.api import StepResult, UserError
from benchmarks.store import Cell

ARGUMENTS = [
    *("--budget", "steps=6", "--alignprop.batch-size", "2", "--alignprop.micro-batch", "2"),
    *("--alignprop.sampling-steps", "4", "--ddpo.sampling-steps", "4"),
    *("--memory", "store"),  # also in the processes that are killed
    *("--ddpo.samples-per-round", "4", "--ddpo.micro-batch", "2", "--ddpo.updates-per-round", "2"),
]
START = (
    "import sys, torch, benchmarks.harness, run_benchmark;"
    "torch.set_num_threads(1);"  # as in the tests: sums depend on the number of threads
    "benchmarks.harness.CHECKPOINT_EVERY = 0.0;"
    "sys.exit(run_benchmark.main(sys.argv[1:]))"
)


def arguments(folder: Path, out: Path) -> list[str]:
    both = ["--methods", "alignprop", "ddpo", "--backbone", str(folder), "--out", str(out)]
    return [*both, "--task", str(folder / "few.toml"), *ARGUMENTS]


def outcome(out: Path) -> dict[str, object]:
    """All that finished cells leave behind, clock fields aside."""
    found: dict[str, object] = {}
    for path in sorted(out.glob("*/*")):
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[f"{path.parent.name}/{path.name}"] = [
                {k: v for k, v in line.items() if k != "seconds"} for line in lines
            ]
        elif path.is_file():
            found[f"{path.parent.name}/{path.name}"] = path.read_bytes()
    for path in sorted(out.glob("*/images/**/*.png")):
        found[str(path.relative_to(out))] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def uninterrupted(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    out = tmp_path_factory.mktemp("whole")
    assert run_benchmark.main(arguments(tiny_folder, out)) == 0
    return outcome(out)


@pytest.fixture(autouse=True)
def checkpoint_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "CHECKPOINT_EVERY", 0.0)


@pytest.mark.parametrize(
    ("crash", "broken"),
    [(1, "nothing"), (3, "nothing"), (3, "newest checkpoint"), (4, "both checkpoints")],
)
def test_a_crash_changes_nothing(
    crash: int, broken: str, tiny_folder: Path, tmp_path: Path, uninterrupted, monkeypatch
):
    for name in ("alignprop", "ddpo"):
        cls = registry.methods.get(name)
        step = cls.step

        def failing(self, number: int, step=step) -> StepResult:
            if number == crash:
                raise RuntimeError("the plug was pulled")
            return step(self, number)

        monkeypatch.setattr(cls, "step", failing)
    assert run_benchmark.main(arguments(tiny_folder, tmp_path)) == 1
    monkeypatch.undo()
    checkpoints = sorted(tmp_path.glob("*/checkpoint-*"))
    assert len(checkpoints) == 2 * min(crash, 2)
    for cell in {c.parent for c in checkpoints}:
        own = [c for c in checkpoints if c.parent == cell]
        for path in {"nothing": [], "newest checkpoint": own[-1:]}.get(broken, own):
            path.write_bytes(path.read_bytes()[:1000])
        with (cell / "steps.jsonl").open("a") as file:
            file.write('{"step": 99, "rew')  # what a kill in the middle of a line leaves
    assert run_benchmark.main(arguments(tiny_folder, tmp_path)) == 0
    found = outcome(tmp_path)
    assert found.keys() == uninterrupted.keys()
    assert found == uninterrupted


def kill_and_finish(folder: Path, out: Path, seed: int) -> tuple[dict[str, object], int]:
    """Start, kill -9 at a random moment, start again; the outcome and how many steps were kept."""
    command = [sys.executable, "-c", START, *arguments(folder, out)]
    root = Path(run_benchmark.__file__).parent
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, env=os.environ)
    while process.poll() is None and not list(out.glob("*/checkpoint-*")):
        time.sleep(0.02)
    time.sleep(random.Random(seed).uniform(0, 3))
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(list(out.glob("*/checkpoint-*")))
    assert run_benchmark.main(arguments(folder, out)) == 0
    return outcome(out), kept


def test_kill_nine(tiny_folder: Path, tmp_path: Path, uninterrupted):
    found, _ = kill_and_finish(tiny_folder, tmp_path, seed=0)
    assert found == uninterrupted


@pytest.mark.slow
def test_kill_nine_many_times(tiny_folder: Path, tmp_path: Path, uninterrupted):
    kills = [kill_and_finish(tiny_folder, tmp_path / str(i), seed=i) for i in range(20)]
    print(f"{len(kills)} kills, {sum(kept > 0 for _, kept in kills)} while a cell was running")
    assert all(found == uninterrupted for found, _ in kills)


def test_a_cell_is_run_by_one_process_at_a_time(tmp_path: Path):
    description = {"method": "alignprop", "reward": "jpeg", "seed": 0}
    with Cell(tmp_path, description).claimed():
        second = Cell(tmp_path, description).claimed()
        with pytest.raises(UserError, match="being run by another process"):
            second.__enter__()
    with Cell(tmp_path, description).claimed():
        pass
