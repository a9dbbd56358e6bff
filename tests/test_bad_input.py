"""Bad input is one clear line on stderr and a non-zero exit code, and nothing is lost."""

from pathlib import Path

import pytest

import run_benchmark

TASK = 'train = ["cat"]\nunseen = ["dog"]\nheld_out = []\n[evaluation]\n'
COUNTS = "train_every = 1\ntrain_images = 1\nunseen_images = 1\n"
#: Files by name: what they hold.
FILES = {
    "typo.toml": "[alignprop]\nbatch_sise = 3\n",
    "type.toml": '[alignprop]\nbatch_size = "many"\n',
    "flat.toml": "[alignprop]\noptimizer = 3\n",
    "other.toml": "[rwr]\nbeta = 3.0\n",
    "broken.toml": "[alignprop\n",
    "latin.toml": b"# caf\xe9\n",
    "empty.toml": TASK.replace('"cat"', "") + COUNTS,
    "blank.toml": TASK.replace('"cat"', '" "') + COUNTS,
    "short.toml": 'train = ["cat"]\n',
    "extra.toml": TASK + COUNTS + "test_images = 1\n",
    "none.toml": TASK + COUNTS.replace("_every = 1", "_every = 0"),
    "held.toml": TASK.replace("[]", '["allignment"]') + COUNTS,
    "syntax.py": "def\n",
    "imports.py": "import no_such_module_here\n",
    "taken.py": "from methods import register_method\nregister_method('refl')(int)\n",
    "nothing.py": "x = 1\n",
    "file": "not a directory",
    "weightless/model_index.json": '{"_class_name": "StableDiffusionPipeline"}',
    "sent/alignprop-jpeg-seed0-00000000/cell.json": "[1, 2]",
}
TINY = ("--backbone", "TINY", "--task", "TINY/few.toml", "--budget", "steps=1")
ONE = ("--methods", "alignprop", *TINY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # names
        (["--methods", "alignprob"], "did you mean 'alignprop'"),
        (["--methods", "refl", "refl"], "name each method once"),
        (["--reward", "jpg"], "did you mean 'jpeg'"),
        (["--task", "plants"], "known: animals"),
        (["--list", "colours"], "choose from"),
        # options and values
        (["--alignprop.batch-sise", "3"], "--alignprop.batch-sise"),
        (["--alignprop.batch-size", "many"], "many"),
        (["--alignprop.truncation.mode", "half"], "half"),
        (["--seeds", "one"], "one"),
        (["--precision", "fp8"], "fp8"),
        (["--budget", "flops=-1"], "positive amount"),
        (["--budget", "flops=nan"], "positive amount"),
        (["--budget", "parsecs=3"], "KIND of flops"),
        (["--shard", "3/2"], "write I/N"),
        (["--shard", "9/9"], "only 2 cells"),
        (["--launch", "local", "--jobs", "0"], "at least 1"),
        (["--launch", "pigeons"], "pigeons"),
        # what cannot work
        (["--reward", "jpeg-incompressibility"], "black box"),
        (
            [*ONE, "--alignprop.truncation.mode", "fixed", "--alignprop.truncation.k", "99"],
            "k is 99",
        ),
        (
            [*ONE, "--alignprop.micro-batch", "0"],
            "command line: micro_batch must be at least 1, not 0",
        ),
        ([*ONE, "--alignprop.batch-size", "-4"], "must be at least 1, not -4"),
        ([*ONE, "--alignprop.sampling-steps", "0"], "sampling_steps must be at least 1"),
        ([*ONE, "--alignprop.sampling-steps", "5000"], "sampling_steps is 5000"),
        # files
        (["--config", "/nonexistent.toml"], "no such file"),
        (["--config", "typo.toml"], "did you mean 'batch_size'"),
        (["--config", "type.toml"], "batch_size must be int, not 'many'"),
        (["--config", "flat.toml"], "must be a table"),
        (["--config", "other.toml"], "unknown table 'rwr'"),
        (["--config", "broken.toml"], "not valid TOML"),
        (["--config", "latin.toml"], "not valid TOML"),
        (["--config", "."], "Is a directory"),
        (["--task", "/nonexistent.toml"], "no such file"),
        (["--task", "latin.toml"], "not valid TOML"),
        (["--task", "empty.toml"], "must be a list of prompts"),
        (["--task", "blank.toml"], "must be a list of prompts"),
        (["--task", "short.toml"], "missing unseen"),
        (["--task", "extra.toml"], "unknown key 'test_images'"),
        (["--task", "none.toml"], "train_every must be at least 1"),
        (["--task", "held.toml"], "did you mean 'alignment'"),
        (["--plugin", "/nonexistent.py"], "no such Python file"),
        (["--plugin", "syntax.py"], "SyntaxError"),
        (["--plugin", "imports.py"], "no_such_module_here"),
        (["--plugin", "taken.py"], "already registered by methods.refl"),
        (["--backbone", "/nonexistent"], "not a diffusers folder"),
        (["--backbone", "weightless"], "unet is missing"),
        (["--out", "/dev/null/runs"], "cannot be written"),
        (["--out", "file"], "cannot be written"),
        (["run", "sent/alignprop-jpeg-seed0-00000000/cell.json"], "no cell, but [1, 2]"),
        (["run", "sent"], "Is a directory"),
        (["run", "sent/cell.json", "--budget", "steps=3"], "--budget"),
        # subcommands
        (["status"], "name a directory"),
        (["status", "/nonexistent"], "is no directory"),
        (["status", "weightless"], "no cells"),
        (["evaluate", "--swep", "3"], "--swep"),
        (["evaluate", "--sweep", "many"], "many"),
        (["plan", "--metods", "ddpo"], "--metods"),
        (["new", "method", "my-idea"], "like my_idea"),
        (["check"], "A Python file that registers methods"),
        (["suite"], "A name (see list suites)"),
        (["suite", "papre"], "did you mean 'paper'"),
        (["plan", "--suite", "papre"], "did you mean 'paper'"),
        (["search", "nowhere.toml"], "no such file"),
        (["report"], "name a directory"),
        (["report", "/nonexistent"], "no such directory"),
        (["reference", "there"], "takes no options"),
        (["check", "nothing.py"], "registers no method"),
    ],
)
def test_one_clear_line(
    arguments: list[str], message: str, tiny_folder: Path, tmp_path: Path, monkeypatch, capsys
):
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    arguments = [a.replace("TINY", str(tiny_folder)) for a in arguments]
    assert run_benchmark.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err
    assert all(path.read_bytes() == content for path, content in before.items())
