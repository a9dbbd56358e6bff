"""Cells as jobs of a genuine Slurm of one node, started here as ordinary processes."""

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import run_benchmark

ROOT = Path(run_benchmark.__file__).parent
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
MISSING = [name for name in PROGRAMS if not shutil.which(name)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
# Plain processes in one container: no control groups, no accounting, no delay before a second try.
CONFIGURATION = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={first}
SlurmdPort={second}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=requeue_delay=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=here Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A running Slurm; the environment in which its commands find it."""
    folder = tmp_path_factory.mktemp("slurm")
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    values = {"folder": folder, "host": host, "user": getpass.getuser(), "cores": os.cpu_count()}
    ports = {"first": free_port(), "second": free_port()}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**values, **ports))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    folder.chmod(0o755)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(ROOT)}
    files = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munge.pid"}
    files |= {"log-file": folder / "munge.log", "seed-file": folder / "munge.seed"}
    munged = ["munged", "--foreground", "--force", *(f"--{k}={v}" for k, v in files.items())]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            with (folder / f"{command[0]}.out").open("wb") as log:
                started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(2)
        wait(lambda: "idle" in ask(environment, "sinfo", "-h", "-o", "%t"), 60)
        yield environment
    finally:
        ask(environment, "scancel", "--user", getpass.getuser())  # of a test that failed
        for process in reversed(started):
            process.terminate()
            process.wait()


def ask(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def wait(ready, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.2)


def records(out: Path) -> dict[str, list[dict]]:
    return {
        f"{path.parent.name}/{path.name}": [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in path.read_text().splitlines()
        ]
        for path in sorted(out.glob("refl-*/*.jsonl"))
    }


def running(environment: dict[str, str]) -> list[str]:
    return ask(environment, "squeue", "-h", "-r", "-t", "running", "-o", "%i").split()


def starts(out: Path) -> int:
    """How often the job of the cell that does not fail has begun."""
    logs = [path.read_text() for path in out.glob("slurm/*_0_log.out")]
    return sum(log.count("refl, seed 0: starting") for log in logs)


def kept(out: Path) -> int:
    """The step of that cell's newest checkpoint."""
    return max((int(path.stem[-8:]) for path in out.glob("refl-*/checkpoint-*")), default=0)


def test_interrupted_jobs_go_on_and_a_failing_one_cancels_nobody(
    slurm, tiny_folder, tmp_path, record_property
):
    plugin, out, whole = tmp_path / "plugin.py", tmp_path / "runs", tmp_path / "whole"
    plugin.write_text(
        "import time\n"
        "import benchmarks.harness.loop\n"
        "from methods.refl import ReFL\n"
        "from methods import register_method\n"
        "benchmarks.harness.loop.CHECKPOINT_EVERY = 0.0\n"
        "step = ReFL.step\n"
        "def slowly(self, number):\n"
        "    time.sleep(0.5)\n"
        "    return step(self, number)\n"
        "ReFL.step = slowly\n"
        "@register_method('fails')\n"
        "class Fails(ReFL):\n"
        "    def step(self, step):\n"
        "        raise RuntimeError('it broke')\n"
    )
    arguments = ["--methods", "fails", "refl", "--plugin", str(plugin), "--budget", "steps=20"]
    arguments += ["--backbone", str(tiny_folder), "--task", str(tiny_folder / "few.toml")]
    arguments += ["--refl.sampling-steps", "2", "--refl.earliest", "0", "--refl.latest", "1"]
    arguments += ["--refl.batch-size", "2"]
    command = [sys.executable, str(ROOT / "run_benchmark.py"), *arguments]
    launch = ["--launch", "slurm", "--partition", "here", "--out", str(out)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, *launch], env=slurm, stdout=log, stderr=log)
    interruptions = (
        ("scancel", "--signal", "USR2"),  # as Slurm does before the time is up
        ("scontrol", "requeue"),  # kills, as a preemption does
    )
    for i, interruption in enumerate(interruptions, 1):
        # Early: what is left takes longer than the seconds that Slurm leaves before it kills.
        wait(lambda i=i: (starts(out), kept(out)) >= (i, 3 * i) and len(running(slurm)) == 1, 600)
        (job,) = running(slurm)
        ask(slurm, *interruption, job)
    assert process.wait(900) == 1, (tmp_path / "log").read_text()
    text = (tmp_path / "log").read_text()
    assert "RuntimeError: it broke" in text and "1 of 2 cells failed" in text
    assert len(list(out.glob("refl-*/done"))) == 1
    assert starts(out) == 3
    # The same as without Slurm and without interruption.
    assert subprocess.run([*command, "--out", str(whole)], env=slurm).returncode == 1
    assert records(out) == records(whole) and len(records(out)) == 2
    (found,), (expected,) = (list(o.glob("refl-*/*_weights.safetensors")) for o in (out, whole))
    assert found.read_bytes() == expected.read_bytes()
    record_property("tried", "1 job out of time, 1 requeued, 1 of 2 that fails")
