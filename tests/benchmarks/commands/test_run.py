"""The layers of a comparison's options, and cells from their files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import run_benchmark
from benchmarks import config
from benchmarks.commands import run
from benchmarks.config import method_config
from benchmarks.experiments.cells import announce, resolve

ROOT = Path(run_benchmark.__file__).parent


def test_help_takes_half_a_second():
    """Processor time without starting Python, the best of three: other work must not count."""
    code = (
        "import sys, time\nstart = time.process_time()\nimport run_benchmark\n"
        "try:\n    run_benchmark.main(['--methods', 'alignprop', 'ddpo', '--help'])\n"
        "except SystemExit:\n    print(time.process_time() - start, file=sys.stderr)\n"
    )
    line = [sys.executable, "-c", code]
    runs = [subprocess.run(line, cwd=ROOT, capture_output=True, text=True) for _ in range(3)]
    assert min(float(run.stderr) for run in runs) < 0.5


def test_every_value_says_where_it_comes_from(tiny_folder: Path, tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text("[refl-pretrain]\nbatch_size = 2\nmicro_batch = 2\n")
    arguments = ["--methods", "refl-pretrain", "--config", str(path), "--out", str(tmp_path)]
    arguments += [
        "--backbone",
        str(tiny_folder / "quick.toml"),
        "--task",
        str(tiny_folder / "few.toml"),
    ]
    arguments += ["--budget=steps=1", "--refl-pretrain.micro-batch", "1"]
    assert run_benchmark.main(arguments) == 0
    (cell,) = tmp_path.glob("refl-pretrain-*/cell.json")
    record = json.loads(cell.read_text())
    sources = record["sources"]
    assert sources["budget"] == sources["task"] == sources["backbone"] == "command line"
    assert sources["reward"] == sources["seed"] == "default"
    assert sources["config.batch_size"] == f"{path}, table refl-pretrain"
    assert sources["config.micro_batch"] == "command line"  # though it is what the preset says
    assert sources["config.latest"] == sources["config.optimizer.lr"] == "preset quick, table refl"
    assert sources["config.pretrain_weight"] == "variant refl-pretrain"
    assert sources["config.optimizer.beta2"] == "default"
    values = {f"config.{key}" for key in config.flat(record["config"])}
    assert {key for key in sources if key.startswith("config.")} == values


def test_a_table_for_no_method_is_refused(tmp_path: Path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text("[alignprob]\nbatch_size = 3\n")
    assert run_benchmark.main(["--config", str(path), "--out", str(tmp_path)]) == 2
    assert "unknown table 'alignprob'; did you mean 'alignprop'?" in capsys.readouterr().err
    path.write_text("alignprop = 3\n")
    assert run_benchmark.main(["--config", str(path), "--out", str(tmp_path)]) == 2
    assert "table alignprop must be a table, not 3" in capsys.readouterr().err


def test_switches_count_as_given():
    options, layers, sources = run.parse(["--methods", "rwr", "--no-compile"])
    assert not options.compile and sources == {"compile": "command line"}
    assert layers["rwr"] == [({}, "command line")]


def test_the_command_line_beats_the_file(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text("[alignprop]\nbatch_size = 3\nmicro_batch = 3\n")
    _, layers, _ = run.parse(["--config", str(path), "--alignprop.batch-size", "5"])
    preset = config.load_preset("emoji")
    found, sources = method_config("alignprop", preset, *layers["alignprop"])
    assert (found.batch_size, found.micro_batch) == (5, 3)
    assert found.guidance == preset.methods["alignprop"]["guidance"]
    assert sources["batch_size"] == "command line" and str(path) in sources["micro_batch"]


# Cells from their files


def announced(tiny_folder: Path, out: Path, **options: object) -> Path:
    """The file of a small cell."""
    small = {"batch_size": 1, "sampling_steps": 2, "earliest": 0, "latest": 1}
    given = {"backbone": str(tiny_folder / "quick.toml"), "task": str(tiny_folder / "few.toml")}
    cells = resolve({"refl": [(small, "here")]}, **given, budget="steps=1", **options)
    announce(cells, out)
    (path,) = out.glob("refl-*/cell.json")
    return path


def test_a_cell_runs_where_its_file_lies(tiny_folder: Path, tmp_path: Path):
    path = announced(tiny_folder, tmp_path / "runs", reward="colourfulness")
    assert run_benchmark.main(["run", str(path)]) == 0
    assert {child.name for child in (tmp_path / "runs").iterdir()} == {path.parent.name}
    assert (path.parent / "done").exists()
    record = json.loads(path.read_text())
    assert record["sources"]["config.batch_size"] == "here" and record["threads"] >= 1


def test_a_recorded_cell_gives_the_same_numbers_again(tiny_folder: Path, tmp_path: Path):
    path = announced(tiny_folder, tmp_path / "runs", reward="colourfulness")
    assert run_benchmark.main(["run", str(path)]) == 0
    assert run_benchmark.main(["run", str(path), "--out", str(tmp_path / "again")]) == 0
    (again,) = (tmp_path / "again").glob("*/evals.jsonl")
    rewards = [
        [json.loads(line)["rewards"] for line in file.read_text().splitlines()]
        for file in (path.parent / "evals.jsonl", again)
    ]
    assert rewards[0] == rewards[1] and again.parent.name == path.parent.name


CODE = """
from pathlib import Path
Path('RAN').touch()
def score(images, prompts):
    return [0.0 for _ in images]
"""


def test_code_that_a_cell_file_names_is_not_run(tiny_folder: Path, tmp_path: Path, capsys):
    """Not from a reward, not from a held-out reward; only if the command line names it too."""
    code = tmp_path / "theirs.py"
    code.write_text(CODE.replace("RAN", str(tmp_path / "ran")))
    path = announced(tiny_folder, tmp_path / "runs", held_out=[f"{code}:score"])
    assert run_benchmark.main(["run", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"--plugin {code}" in error and error.count("\n") == 1
    assert not (tmp_path / "ran").exists()
    shutil.copytree(path.parent, tmp_path / "sent" / path.parent.name)
    sent = tmp_path / "sent" / path.parent.name / "cell.json"
    run_benchmark.main(["run", str(sent), "--held-out", f"{code}:score"])
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "a"}, "seed must be int, not 'a'"),
        ({"method": "refk"}, "unknown method 'refk'; did you mean 'refl'"),
    ],
)
def test_a_damaged_file_is_one_clear_line(change, message, tiny_folder, tmp_path, capsys):
    path = announced(tiny_folder, tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert run_benchmark.main(["run", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_file_that_is_no_cell(tmp_path: Path, capsys):
    for text in ("[1, 2]", "{", "{}"):
        (tmp_path / "cell.json").write_text(text)
        assert run_benchmark.main(["run", str(tmp_path / "cell.json")]) == 2
        assert str(tmp_path / "cell.json") in capsys.readouterr().err
    assert run_benchmark.main(["run", str(tmp_path / "none.json")]) == 2
