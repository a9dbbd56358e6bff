"""A small comparison of AlignProp and DDPO on the tiny pipeline, and its records."""

import json
from pathlib import Path

import pytest

import analysis.report
import run_benchmark

SMALL = [
    *("--alignprop.batch-size", "2", "--alignprop.micro-batch", "2"),
    *("--alignprop.sampling-steps", "4", "--ddpo.sampling-steps", "4"),
    *("--ddpo.samples-per-round", "4", "--ddpo.samples-per-prompt", "2", "--ddpo.micro-batch", "2"),
    *("--alignprop.optimizer.lr", "0.1"),  # so that a few steps can be seen
]


def run(folder: Path, out: Path, *more: str, report: bool = False) -> int:
    """The exit code of the command, which writes its report only where a test looks at it."""
    both = [
        "--methods",
        "alignprop",
        "ddpo",
        "--backbone",
        str(folder / "quick.toml"),
        "--out",
        str(out),
    ]
    both += ["--task", str(folder / "few.toml")]
    with pytest.MonkeyPatch.context() as patch:
        if not report:
            patch.setattr(analysis.report, "write_report", lambda out: "")
        return run_benchmark.main([*both, *SMALL, *more])


def records(out: Path, method: str, name: str) -> list[dict]:
    (cell,) = out.glob(f"{method}-*")
    lines = (cell / f"{name}.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
