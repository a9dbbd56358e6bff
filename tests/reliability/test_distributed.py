"""Two processes (gloo, CPU) do what one does: gradients, rewards, weights, records."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from worker import measure

import run_benchmark
from benchmarks import distributed, registry
from benchmarks.api import StepResult
from benchmarks.harness import loop
from benchmarks.records import checkpoint

ROOT = Path(run_benchmark.__file__).parent
pytestmark = pytest.mark.slow
# What ``accelerate launch`` starts on GPUs (on CPUs it would need MPI); never a look-up of names.
TORCHRUN = ("torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1")
TORCHRUN += ("--nproc-per-node", "2")
TIMEOUT = 300  # seconds; processes that wait for each other would wait for ever
CLOSE = 1e-4  # of the largest entry: float32 sums in another order


def launch(*command: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["GLOO_SOCKET_IFNAME"] = "lo"
    process = subprocess.Popen(
        (sys.executable, "-m", *command),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=TIMEOUT)
    finally:
        with suppress(ProcessLookupError):  # the workers too
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors


def assert_close(found, expected, where: str) -> None:
    """Nested states agree to ``CLOSE``."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_close(found[key], expected[key], f"{where} {key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, f"{where} {i}")
    elif isinstance(expected, torch.Tensor):
        assert found.shape == expected.shape, where
        difference, size = (found - expected).abs(), expected.abs()
        if expected.numel():
            assert difference.max() <= CLOSE * size.max(), where
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=CLOSE, abs=1e-6, nan_ok=True), where
    else:
        assert found == expected, where


def test_two_processes_do_what_one_does(tiny_folder: Path, tmp_path: Path, record_property):
    """Every registered method; five samples, so shares are uneven."""
    worker = str(Path(__file__).parent / "worker.py")
    launch(*TORCHRUN, worker, str(tiny_folder), str(tmp_path))
    first, second = (checkpoint.load(tmp_path / f"{rank}.safetensors") for rank in range(2))
    alone = measure(tiny_folder)
    assert set(alone) == set(registry.methods.names())
    for name in alone:
        assert_close(first[name], alone[name], name)
        assert_close(second[name], first[name], f"{name}, second process")
    record_property("tried", f"two processes instead of one, {len(alone)} methods")


def cells(out: Path) -> dict[str, list[dict]]:
    """Records by file, clock fields aside."""
    found = {}
    for path in sorted(out.glob("*/*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[f"{path.parent.name}/{path.name}"] = [
            {k: v for k, v in line.items() if k != "seconds"} for line in lines
        ]
    return found


def test_a_whole_run_under_torchrun(tiny_folder: Path, tmp_path: Path, monkeypatch):
    """Records are those of one process, also if one process began, crashed, and two go on."""
    arguments = [
        "--backbone",
        str(tiny_folder / "quick.toml"),
        "--task",
        str(tiny_folder / "few.toml"),
    ]
    arguments += ["--budget", "steps=3", "--methods", "alignprop"]
    own = ["--alignprop.batch-size", "3", "--alignprop.sampling-steps", "4"]
    other = [
        "--ddpo.samples-per-round",
        "4",
        "--ddpo.samples-per-prompt",
        "2",
        "--ddpo.micro-batch",
        "2",
    ]
    other += ["--ddpo.sampling-steps", "4"]
    both = [*arguments, "ddpo", *own, *other]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_benchmark.main([*both, "--out", str(one)]) == 0
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 0.0)
    cls = registry.methods.get("alignprop")
    step = cls.step

    def failing(self, number: int) -> StepResult:
        if number == 1:
            raise RuntimeError("the plug was pulled")
        return step(self, number)

    monkeypatch.setattr(cls, "step", failing)
    assert run_benchmark.main([*arguments, *own, "--out", str(two)]) == 1
    assert len(list(two.glob("alignprop-*/checkpoint-*"))) == 1
    launch(*TORCHRUN, "run_benchmark.py", *both, "--out", str(two))
    found, expected = cells(two), cells(one)
    assert len(expected) == 4
    assert_close(found, expected, "records")
    assert {p.relative_to(two) for p in two.rglob("*")} == {
        p.relative_to(one) for p in one.rglob("*")
    }


def test_sharing_covers_everything_once(monkeypatch: pytest.MonkeyPatch):
    for count in (1, 2, 3, 8):
        monkeypatch.setattr(distributed, "processes", lambda count=count: count)
        for n in (0, 1, 5, 16):
            seen, sizes = [], []
            for rank in range(count):
                monkeypatch.setattr(distributed, "process", lambda number=rank: number)
                chunks = distributed.parts(range(n), 3)
                assert all(0 < len(chunk) <= 3 for chunk in chunks)
                seen += [i for chunk in chunks for i in chunk]
                sizes.append(len(distributed.share(range(n))))
            assert seen == list(range(n)) and max(sizes) - min(sizes) <= 1
