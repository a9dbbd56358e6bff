"""Many cells: what status says about them, shards, and the local launcher."""

import json
import shutil
from pathlib import Path

import pytest

import run_benchmark
from benchmarks.api import UserError
from benchmarks.experiments import launch
from benchmarks.records import state
from benchmarks.records.cell import Cell, write_json


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
    names = [c.path.name for c in (done, failed, unfinished, running)]
    write_json(tmp_path / "plan.json", [*names, "e-jpeg-seed0-00000000"])
    with running.claimed():
        assert state.main([str(tmp_path)]) == 1
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
    assert state.main([str(one)]) == 1
    assert state.main([str(one), str(two)]) == 0
    assert capsys.readouterr().out.endswith("2 cells: 2 done\n")


def test_shards_cover_all_cells_once():
    for count in (1, 3, 5):
        shards = [range(4)[launch.parse_shard(f"{i}/{count}")] for i in range(1, count + 1)]
        assert sorted(i for shard in shards for i in shard) == [0, 1, 2, 3]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_wrong_shard(text: str):
    with pytest.raises(UserError, match="write I/N"):
        launch.parse_shard(text)


def test_the_local_launcher(fresh_registry, tiny_folder: Path, tmp_path: Path, capsys):
    """Two cells, each in a process of its own; the one that fails leaves the other alone."""
    plugin, out = tmp_path / "fails.py", tmp_path / "runs"
    plugin.write_text(
        "from methods.refl import ReFL\n"
        "from methods import register_method\n"
        "@register_method('fails')\n"
        "class Fails(ReFL):\n"
        "    def step(self, step):\n"
        "        raise RuntimeError('it broke')\n"
    )
    arguments = ["--methods", "fails", "refl", "--plugin", str(plugin), "--out", str(out)]
    arguments += ["--backbone", str(tiny_folder), "--task", str(tiny_folder / "few.toml")]
    arguments += ["--refl.sampling-steps", "2", "--refl.earliest", "0", "--refl.latest", "1"]
    arguments += ["--budget", "steps=1"]
    assert run_benchmark.main([*arguments, "--launch", "local", "--jobs", "2"]) == 1
    captured = capsys.readouterr()
    assert "failed step 0: RuntimeError: it broke" in captured.err
    assert "1 of 2 cells failed" in captured.err and "refl" in captured.out
    assert len(list(out.glob("refl-*/done"))) == 1
    assert "it broke" in "".join(log.read_text() for log in out.glob("logs/*.log"))
    assert len(json.loads((out / "plan.json").read_text())) == 2


def test_a_cell_alone_is_launched_no_further():
    given = ["--methods", "refl", "--launch", "local", "--jobs=2", "--out", "there"]
    assert launch.alone(given, 1, 3) == ["--methods", "refl", "--out", "there", "--shard", "2/3"]
