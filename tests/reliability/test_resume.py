"""A run that is killed goes on to the end it would have had."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest

import analysis.report
import run_benchmark
from benchmarks import registry
from benchmarks.api import StepResult
from benchmarks.harness import interrupt, loop

ARGUMENTS = [
    *("--budget", "steps=6", "--alignprop.batch-size", "2", "--alignprop.micro-batch", "2"),
    *("--alignprop.sampling-steps", "4", "--ddpo.sampling-steps", "4"),
    *("--keep", "all"),  # also in the processes that are killed
    *("--ddpo.samples-per-round", "4", "--ddpo.samples-per-prompt", "2"),
    *("--ddpo.micro-batch", "2", "--ddpo.updates-per-round", "2"),
]
#: What a run may be ended with; half of the time there is no chance to tidy up.
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def arguments(tiny_folder: Path, out: Path) -> list[str]:
    both = ["--methods", "alignprop", "ddpo", "--out", str(out)]
    both += ["--backbone", str(tiny_folder / "quick.toml"), "--task", str(tiny_folder / "few.toml")]
    return [*both, *ARGUMENTS]


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
def timed(tiny_folder: Path, tmp_path_factory) -> tuple[dict[str, object], float]:
    """The outcome without any fault, and how many seconds it took."""
    out, begin = tmp_path_factory.mktemp("whole"), time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        only_cells(patch)
        assert run_benchmark.main(arguments(tiny_folder, out)) == 0
    return outcome(out), time.monotonic() - begin


@pytest.fixture(scope="module")
def uninterrupted(timed) -> dict[str, object]:
    return timed[0]


def only_cells(patch: pytest.MonkeyPatch) -> None:
    """Checkpoints after every step, and no report."""
    patch.setattr(loop, "CHECKPOINT_EVERY", 0.0)
    patch.setattr(analysis.report, "write_report", lambda out: "")


@pytest.fixture(autouse=True)
def only_cells_here(monkeypatch: pytest.MonkeyPatch) -> None:
    only_cells(monkeypatch)


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


def start(tiny_folder: Path, out: Path) -> int:
    """The same command in a process forked from this one, which has imported everything."""
    before = [signal.getsignal(number) for number in interrupt.SIGNALS]
    interrupt.listen()  # as run_benchmark.py does
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            process = os.fork()  # from Python 3.12 on it warns of our threads
        if process == 0:
            code = 130
            try:
                code = run_benchmark.main(arguments(tiny_folder, out))
            finally:
                os._exit(code)
    finally:
        for number, handler in zip(interrupt.SIGNALS, before, strict=True):
            signal.signal(number, handler)
    return process


def kill_until_it_ends(
    tiny_folder: Path, out: Path, dice: random.Random, seconds: float
) -> list[str]:
    """Kill it within so many seconds and start it again, until it is quicker: the signals sent."""
    sent: list[str] = []
    while True:
        process, end = start(tiny_folder, out), time.monotonic() + dice.uniform(0, seconds)
        gone = 0
        while not gone and time.monotonic() < end:
            time.sleep(0.005)
            gone, status = os.waitpid(process, os.WNOHANG)
        if not gone:
            chosen = dice.choice(SIGNALS)
            sent.append(chosen.name)
            seconds *= 1.05  # so that there is an end also if the machine becomes slower
            os.kill(process, chosen)
            _, status = os.waitpid(process, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return sent if gone else sent[:-1]  # it had ended before the signal came
        assert not gone and code == {"SIGKILL": -signal.SIGKILL}.get(sent[-1], 130)


@pytest.mark.parametrize(
    ("kills", "seed"),
    [(5, 0), *(pytest.param(20, seed, marks=pytest.mark.slow) for seed in range(1, 11))],
)
def test_killed_at_random_moments(
    kills: int, seed: int, tiny_folder: Path, tmp_path: Path, timed, record_property
):
    (uninterrupted, seconds), dice = timed, random.Random(seed)
    sent, runs = list[str](), 0
    while len(sent) < kills:
        runs += 1
        sent += kill_until_it_ends(tiny_folder, tmp_path / str(runs), dice, seconds)
        assert outcome(tmp_path / str(runs)) == uninterrupted
    counts = ", ".join(f"{n} {name}" for name, n in sorted(Counter(sent).items()))
    record_property("tried", f"{len(sent)} kills at random moments of {runs} runs ({counts})")


def test_sigterm_ends_the_command(tiny_folder: Path, tmp_path: Path, uninterrupted):
    """One line, exit code 130, no failed cell; and the same command goes on."""
    command = [sys.executable, "run_benchmark.py", *arguments(tiny_folder, tmp_path)]
    process = subprocess.Popen(
        command,
        cwd=Path(run_benchmark.__file__).parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # as in the tests: sums depend on it
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(tmp_path.glob("*/steps.jsonl")):
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("interrupted; ") and "Traceback" not in errors
    assert not list(tmp_path.glob("*/failed.json"))
    assert run_benchmark.main(arguments(tiny_folder, tmp_path)) == 0
    assert outcome(tmp_path) == uninterrupted


def test_an_interruption_that_a_library_swallows(tiny_folder: Path, tmp_path: Path, monkeypatch):
    def load(*arguments: object, **options: object) -> None:
        monkeypatch.setattr(interrupt, "_asked", True)
        raise OSError("a damaged file, it believes")

    monkeypatch.setattr(loop, "load", load)
    assert run_benchmark.main(arguments(tiny_folder, tmp_path)) == 130
    assert len(list(tmp_path.glob("*/lock"))) == 1 and not list(tmp_path.glob("*/failed.json"))
