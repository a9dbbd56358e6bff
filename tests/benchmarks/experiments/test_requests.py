"""Requests stand apart so that ``--help`` is fast."""

import subprocess
import sys
from pathlib import Path

import run_benchmark


def test_requests_and_their_commands_import_no_torch():
    names = ("experiments.requests", "commands.evaluate", "commands.select", "commands.suite")
    lines = [f"import benchmarks.{name}" for name in names]
    code = "; ".join([*lines, "import sys; assert 'torch' not in sys.modules"])
    root = Path(run_benchmark.__file__).parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
