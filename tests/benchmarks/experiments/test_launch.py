"""The local launcher: each cell in a process of its own, run from its file."""

import json
from pathlib import Path

import run_benchmark
from benchmarks.experiments.cells import resolve
from benchmarks.experiments.launch import Around, command


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
    arguments += [
        "--backbone",
        str(tiny_folder / "quick.toml"),
        "--task",
        str(tiny_folder / "few.toml"),
    ]
    arguments += ["--refl.sampling-steps", "2", "--refl.earliest", "0", "--refl.latest", "1"]
    arguments += ["--budget", "steps=1"]
    assert run_benchmark.main([*arguments, "--launch", "local", "--jobs", "2"]) == 1
    captured = capsys.readouterr()
    assert "failed step 0: RuntimeError: it broke" in captured.err
    assert "1 of 2 cells failed" in captured.err and "refl" in captured.out
    assert len(list(out.glob("refl-*/done"))) == 1
    assert "it broke" in "".join(log.read_text() for log in out.glob("logs/*.log"))
    cells = [json.loads(file.read_text()) for file in out.glob("*/cell.json")]
    assert {cell["sources"]["reward"] for cell in cells} == {"default"}
    assert {cell["sources"]["budget"] for cell in cells} == {"command line"}


def test_what_a_launched_cell_is_told(tmp_path: Path):
    """Its file, where it belongs, and again the code that the user named."""
    code = tmp_path / "mine.py"
    code.write_text("def score(images, prompts):\n    return [0.0 for _ in images]\n")
    (spec,) = resolve({"ddpo": []}, reward=f"{code}:score")
    around = Around(out=tmp_path, plugins=(Path("p.py"),), track="tensorboard")
    words = command(tmp_path / "cell.json", spec, around)
    assert words[:4] == ["run", str(tmp_path / "cell.json"), "--out", str(tmp_path)]
    assert words[4:6] == ["--plugin", "p.py"]
    assert words[6:] == ["--held-out", f"{code}:score", "--track", "tensorboard"]
