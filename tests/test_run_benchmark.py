"""The command line, end to end on a tiny diffusers folder."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image
from two_methods import records, run

import benchmarks
import run_benchmark
from benchmarks import config
from benchmarks.api import UserError
from benchmarks.commands import plan
from benchmarks.commands import run as running
from benchmarks.harness.evaluate import NOISE_SEED
from benchmarks.streams import Streams


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    assert run(tiny_folder, out, "--budget", "flops=6e8", report=True) == 0
    return out


def test_it_leaves_records_curve_table_and_pictures(finished: Path):
    for name in ("reward_curve.png", "table.md"):
        assert (finished / name).stat().st_size > 100
    for method in ("alignprop", "ddpo"):
        assert (finished / f"before_after_{method}.png").exists()
        evals = records(finished, method, "evals")
        assert {e["split"] for e in evals} == {"train", "unseen"}
        assert {0.0, 0.5, 1.0} <= {e["fraction"] for e in evals}


def test_the_same_seed_gives_the_same_numbers(finished: Path, tiny_folder: Path, tmp_path: Path):
    assert run(tiny_folder, tmp_path, "--budget", "flops=6e8") == 0
    for method in ("alignprop", "ddpo"):
        for name in ("steps", "evals"):
            assert records(tmp_path, method, name) == records(finished, method, name)


def test_cell_json_says_on_what_it_ran(finished: Path):
    (path,) = finished.glob("alignprop-*/cell.json")
    cell = json.loads(path.read_text())
    assert cell["precision"] == "fp32" and cell["processes"] == 1
    assert cell["git"] is None or len(cell["git"]["commit"]) == 40


def test_finished_cells_are_not_run_again(finished: Path, tiny_folder: Path):
    before = {p: p.stat().st_mtime_ns for p in finished.glob("*/steps.jsonl")}
    assert run(tiny_folder, finished, "--budget", "flops=6e8") == 0
    assert before == {p: p.stat().st_mtime_ns for p in finished.glob("*/steps.jsonl")}


def test_plain_diffusers_draws_the_final_pictures(finished: Path, tiny_folder: Path):
    """StableDiffusionPipeline with the run's checkpoint gives the run's own pictures."""
    (cell,) = finished.glob("alignprop-*")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipeline.load_lora_weights(cell)
    pipeline.set_progress_bar_config(disable=True)
    prompts = config.load_task(str(tiny_folder / "few.toml")).evaluation_prompts()["unseen"][:2]
    settings = config.load_preset(str(tiny_folder / "quick.toml")).evaluation
    drawn = pipeline(
        prompts,
        num_inference_steps=settings.sampling_steps,
        guidance_scale=settings.guidance,
        latents=Streams(NOISE_SEED).normal("evaluation", 0, range(2), (4, 8, 8)),
        output_type="np",
    ).images
    last = records(finished, "alignprop", "evals")[-1]["step"]
    assert last > 0
    for i, picture in enumerate(drawn):
        path = cell / "images" / "unseen" / f"{last:06d}" / f"{i:03d}.png"
        saved = np.asarray(Image.open(path)).astype(float)
        assert np.abs(saved - 255 * picture).max() < 1.0
        base = np.asarray(Image.open(cell / "images/unseen/000000" / f"{i:03d}.png"))
        assert np.abs(saved - base).max() > 2.0  # the checkpoint matters


def test_from_python_it_gives_a_table(tiny_folder: Path, tmp_path: Path):
    small = {"batch_size": 2, "micro_batch": 2, "sampling_steps": 4}
    frame = benchmarks.run(
        methods=["alignprop"],
        backbone=str(tiny_folder / "quick.toml"),
        task=str(tiny_folder / "few.toml"),
        budget="steps=2",
        config={"alignprop": small},
        out=tmp_path,
    )
    last = frame[frame.fraction == 1.0].set_index("split")
    assert set(last.index) == {"train", "unseen"}
    assert (last.step == 2).all() and (last.jpeg < 0).all() and (last.reward_queries == 4).all()
    with pytest.raises(UserError, match="did you mean 'batch_size'"):
        benchmarks.run(["alignprop"], config={"alignprop": {"batch_sise": 1}}, out=tmp_path)


def test_help_names_options_with_their_source_and_does_not_import_torch():
    code = (
        "import sys, run_benchmark\n"
        "try:\n"
        "    run_benchmark.main(['--methods', 'alignprop', 'ddpo', 'rwr', 'refl', '--help'])\n"
        "except SystemExit:\n"
        "    sys.exit('torch' in sys.modules)\n"
    )
    root = Path(run_benchmark.__file__).parent
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--ddpo.clip" in result.stdout and "[ddpo-pytorch]" in result.stdout


def test_a_failed_cell_is_recorded_and_the_others_go_on(tiny_folder, tmp_path, capsys):
    plugin = tmp_path / "broken.py"
    plugin.write_text(
        "from methods.refl import ReFL\n"
        "from methods import register_method\n"
        "@register_method('broken')\n"
        "class Broken(ReFL):\n"
        "    'Fails.'\n"
        "    def step(self, step):\n"
        "        raise RuntimeError('it broke')\n"
    )
    arguments = ["--methods", "broken", "refl", "--plugin", str(plugin), "--budget", "steps=1"]
    arguments += ["--task", str(tiny_folder / "few.toml")]
    arguments += ["--backbone", str(tiny_folder / "quick.toml"), "--out", str(tmp_path / "runs")]
    code = run_benchmark.main(arguments)
    assert code == 1
    assert "it broke" in capsys.readouterr().err
    (cell,) = (tmp_path / "runs").glob("broken-*")
    assert json.loads((cell / "failed.json").read_text())["error"] == "it broke"
    assert len(list((tmp_path / "runs").glob("refl-*/done"))) == 1


@pytest.mark.parametrize(("arguments", "said"), [(["plan"], False), ([], True)])
def test_only_what_goes_on_speaks_of_checkpoints(arguments, said, monkeypatch, capsys):
    def interrupted(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "main", interrupted)
    monkeypatch.setattr(running, "main", interrupted)
    assert run_benchmark.main(arguments) == 130
    errors = capsys.readouterr().err
    assert errors.startswith("interrupted") and ("checkpoint" in errors) == said


@pytest.mark.parametrize(
    ("typed", "verb", "rest"),
    [
        ([], "run", []),
        (["--methods", "ddpo"], "run", ["--methods", "ddpo"]),
        (["run", "--methods", "ddpo"], "run", ["--methods", "ddpo"]),
        (["run", "runs/a/cell.json"], "run", ["runs/a/cell.json"]),
        (["plan", "--suite", "paper"], "plan", ["--suite", "paper"]),
        (["--suite", "paper", "--quick"], "suite", ["paper", "--quick"]),
        (["--quick", "--suite=paper"], "suite", ["paper", "--quick"]),
        (["suite", "paper"], "suite", ["paper"]),
        (["--list"], "list", []),
        (["--list", "methods", "tasks"], "list", ["methods", "tasks"]),
        (["--plugin", "a.py", "--list"], "list", ["--plugin", "a.py"]),
        (["--list", "tasks", "--plugin", "a.py"], "list", ["tasks", "--plugin", "a.py"]),
        (["report", "runs"], "report", ["runs"]),
    ],
)
def test_one_grammar_and_the_spellings_of_before(typed: list[str], verb: str, rest: list[str]):
    assert run_benchmark.split(typed) == (verb, rest)


def test_every_verb_is_a_file_and_every_file_a_verb():
    folder = Path(run_benchmark.__file__).parent / "benchmarks" / "commands"
    assert {path.stem for path in folder.glob("[!_]*.py")} == set(run_benchmark.VERBS)


def test_a_full_disk_behind_the_output_is_one_line():
    """And not exit code 120 without a word."""
    command = [sys.executable, run_benchmark.__file__, "list", "tasks"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("run_benchmark.py: No space left on device") and (
        done.stderr.count("\n") == 1
    )


def test_somebody_elses_exit_is_no_success(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(plan, "of_methods", lambda options: sys.exit(0))
    assert run_benchmark.main(["plan"]) == 2
    assert "called sys.exit(0)" in capsys.readouterr().err
