"""What ``status`` says about cells."""

import shutil
from pathlib import Path

import pytest

import run_benchmark
from benchmarks.api import UserError
from benchmarks.records.cell import Cell


def cell(root: Path, method: str) -> Cell:
    """A started cell that got to step 3 of 4."""
    description = {"method": method, "reward": "jpeg", "seed": 0}
    made = Cell(root, description | {"budget": {"kind": "steps", "amount": 4.0}})
    with made.claimed():
        made.begin()
    made.append("steps", {"step": 3, "optimizer_steps": 3})
    return made


def test_status_tells_the_states_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    done, failed, unfinished, running = (cell(tmp_path, m) for m in ("a", "b", "c", "d"))
    done.finish()
    failed.step = 3
    failed.fail(RuntimeError("it broke\nbadly"))
    with (unfinished.path / "steps.jsonl").open("a") as file:
        file.write('{"step": 4, "opt')  # cut short by a kill
    Cell(tmp_path, running.description | {"method": "e"}).announce()
    with running.claimed():
        assert run_benchmark.main(["status", str(tmp_path)]) == 1
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert [line[1:] for line in lines[:-1]] == [
        ["done", "step 3, 75% of the budget"],
        ["failed", "step 3: RuntimeError: it broke"],
        ["unfinished", "step 3, 75% of the budget"],
        ["running", "step 3, 75% of the budget"],
        ["missing"],
    ]
    assert " ".join(lines[-1]) == "5 cells: 1 done, 1 running, 1 failed, 1 unfinished, 1 missing"


def test_status_merges_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one, two = tmp_path / "one", tmp_path / "two"
    first, second = cell(one, "a"), cell(one, "b")
    shutil.copytree(one, two)
    first.finish()
    Cell(two, second.description).finish()
    assert run_benchmark.main(["status", str(one)]) == 1
    assert run_benchmark.main(["status", str(one), str(two)]) == 0
    assert capsys.readouterr().out.endswith("2 cells: 2 done\n")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cell.json", "[1, 2]", "cannot be read"),
        ("cell.json", '{"budget": 3}', "cannot be read"),
        ("cell.json", '{"budget": {"kind": "steps", "amount": 0}}', "cannot be read"),
        ("steps.jsonl", "3\n", "cannot be read"),
        ("steps.jsonl", None, "cannot be read"),
        ("failed.json", "3", "failed.json cannot be read"),
        ("failed.json", None, "failed.json cannot be read"),
        ("lock", None, "step 3"),
    ],
)
def test_a_damaged_record_costs_its_cell_a_line(
    name: str, content: str | None, said: str, tmp_path: Path, capsys
):
    """None: a folder of that name."""
    damaged, other = cell(tmp_path, "a"), cell(tmp_path, "b")
    (damaged.path / name).unlink(missing_ok=True)
    (damaged.path / name).mkdir() if content is None else (damaged.path / name).write_text(content)
    assert run_benchmark.main(["status", str(tmp_path)]) == 1
    first, second, _ = capsys.readouterr().out.splitlines()
    assert said in first and "step 3, 75% of the budget" in second
    for made in (damaged, other):
        try:
            with made.claimed():
                made.begin()
        except (UserError, OSError):
            assert made is damaged
