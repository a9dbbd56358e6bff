"""``--suite``: a suite of two small items on the tiny model, and the one of the paper as it is."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

import run_benchmark
from analysis import __main__, published
from benchmarks import registry
from benchmarks.cli import parse_shard
from benchmarks.config import load_preset, load_task, read_toml
from benchmarks.experiments import launch, suite
from benchmarks.experiments.cells import run_cells
from benchmarks.experiments.requests import Chosen
from benchmarks.forecast.shapes import SHAPES
from benchmarks.records.cell import Cell

SMALL = "config = { batch_size = 2, micro_batch = 2, sampling_steps = 4 }"
SHARED = """
items = ["curves", "weights"]
folder = "tiny"
task = "{task}"
held_out = ["colourfulness"]
budget = "steps=2"
seeds = [0]
quick = {{ budget = "steps=1" }}
"""
CURVES = f"""
title = "Curves"
rewards = ["jpeg"]
figures = ["headline"]
tables = ["table", "headline"]
arms.first = {{ method = "alignprop", {SMALL} }}
arms.one-step = {{ method = "alignprop-k1", {SMALL} }}

[[claims]]
paper = "The first ends higher."
published = ["ablation: K = 1"]
measure = "difference"
arms = ["first", "one-step"]
split = "unseen"
why = "Because of chance."
"""
WEIGHTS = f"""
title = "Weights"
rewards = ["jpeg"]
figures = ["parts"]
tables = ["ablation"]
evaluations = [{{ arm = "lora", rewards = [0], parts = 2 }}]
arms.lora = {{ method = "alignprop", {SMALL} }}
arms.all = {{ method = "alignprop", rank = 0, {SMALL} }}

[[claims]]
paper = "Late steps matter."
measure = "late"
reward = 0
"""


@pytest.fixture(scope="module")
def place(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the suite."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "small").mkdir()
    (folder / "small.toml").write_text(SHARED.format(task=tiny_folder / "few.toml"))
    (folder / "small" / "curves.toml").write_text(CURVES)
    (folder / "small" / "weights.toml").write_text(WEIGHTS)
    return folder


def arguments(place: Path, tiny_folder: Path, *more: object) -> list[str]:
    words = [
        "--suite",
        place / "small.toml",
        "--backbone",
        tiny_folder / "quick.toml",
        "--out",
        place / "out",
    ]
    return [*map(str, words), *map(str, more)]


def ran(place: Path) -> dict[str, int]:
    """When each finished cell, and each evaluation, was written."""
    files = [*place.glob("out/tiny/runs/*/done"), *place.glob("out/tiny/runs/*/evaluation.json")]
    return {file.parent.name: file.stat().st_mtime_ns for file in files}


def test_it_runs_in_pieces_and_goes_on_and_can_be_drawn_again(
    place: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    assert run_benchmark.main(arguments(place, tiny_folder, "--shard", "1/2")) == 0
    out, first = capsys.readouterr().out, ran(place)
    assert "2 tables and figures, 3 different cells" in out  # 4 with the one that both want
    assert len([n for n in first if not n.startswith("evaluate")]) == 2
    assert not (place / "out" / "README.md").exists()

    assert run_benchmark.main(arguments(place, tiny_folder)) == 0
    second, page = ran(place), (place / "out" / "README.md").read_text()
    assert first.items() <= second.items() and len(second) == 3 + 1
    assert "3 of 3 cells" in page and "Not there yet" not in page and "missing" not in page
    assert "Because of chance." in page and "0.291 HPSv2" in page
    (row,) = [line for line in page.splitlines() if "unseen: first - one-step" in line]
    assert "without an interval" in row  # of one seed
    links = [place / "out" / t for t in ("tiny/curves-headline.png", "tiny/weights-parts-jpeg.png")]
    assert all(link.stat().st_size > 1000 for link in links)
    # Full fine-tuning stands beside LoRA, and is another thing.
    table = (place / "out" / "tiny" / "weights.md").read_text()
    assert "| all " in table and "| lora " in table

    # The committed records alone: no weights, no pictures.
    before = {p: p.read_bytes() for p in (place / "out").rglob("*.png") if "images" not in p.parts}
    for path in place.rglob("*"):
        drawn = path in before or path.suffix == ".md"
        if drawn or path.suffix == ".safetensors" or ("images" in path.parts and path.is_file()):
            path.unlink()
    assert __main__.main((place / "out",)) == 0
    assert (place / "out" / "README.md").read_text() == page
    assert all(path.read_bytes() == content for path, content in before.items())
    assert run_benchmark.main(arguments(place, tiny_folder, "--shard", "1/1")) == 0
    assert ran(place) == second


def test_what_is_missing_is_said(place: Path, tiny_folder: Path, monkeypatch, tmp_path: Path):
    """And cells are launched from their files, here one after the other in this process."""
    launched = []

    def local(commands: list[list[str]], jobs: int, out: Path) -> None:
        launched.extend(commands)
        assert all(run_benchmark.main(command) == 0 for command in commands) and jobs == 3

    monkeypatch.setattr(launch, "local", local)
    words = ["--only", "curves", "--quick", "--out", str(tmp_path), "--launch", "local"]
    assert run_benchmark.main(arguments(place, tiny_folder, *words, "--jobs", "3")) == 0
    assert [Path(file).name for _, file, *_ in launched] == ["cell.json"] * 2
    page = (tmp_path / "README.md").read_text()
    assert "2 of 3 cells" in page
    index = json.loads((tmp_path / "tiny" / "suite.json").read_text())
    (missing,) = [n for n, label in index["items"]["weights"]["cells"].items() if label == "all"]
    assert f"- missing: {missing}" in page and "- missing: evaluate-parts-" in page


def test_full_finetuning_trains_and_saves_all_weights(place: Path, tiny_folder: Path, tmp_path):
    from diffusers import UNet2DConditionModel

    chosen = Chosen(suite=str(place / "small.toml"), backbone=str(tiny_folder), quick=True)
    _, weights = suite.load(chosen)
    spec = weights.cells(str(tiny_folder))["jpeg", "all", 0]
    (cell,), failed = run_cells([spec], tmp_path)
    assert not failed
    trained = UNet2DConditionModel.from_pretrained(cell, subfolder="unet").state_dict()
    base = UNet2DConditionModel.from_pretrained(tiny_folder, subfolder="unet").state_dict()
    assert trained.keys() == base.keys()
    still = [k for k in base if (trained[k] == base[k]).all()]
    assert not [k for k in still if "bias" not in k and "norm" not in k], still


def paper(backbone: str = "emoji", quick: bool = False) -> list[suite.Loaded]:
    return suite.load(Chosen(suite="paper", backbone=backbone, quick=quick))


def test_the_paper_is_five_seeds_of_shared_cells_that_shards_partition(tmp_path: Path):
    items = paper()
    cells = [Cell(tmp_path, s.description()).path.name for i in items for s in _all(i, "emoji")]
    different = sorted(set(cells))
    assert len(cells) > 1.3 * len(different)
    seeds = Counter(spec.seed for item in items for spec in _all(item, "emoji"))
    assert len(seeds) == 5 and len(set(seeds.values())) == 1
    shards = [different[parse_shard(f"{i}/3")] for i in (1, 2, 3)]
    assert sorted(name for shard in shards for name in shard) == different
    # 5 hours of 2 cores: 2.2 minutes per 6e12 FLOPs.
    assert len(different) * float(items[0].item.budget.partition("=")[2]) / 6e12 * 2.2 / 60 < 5


def _all(loaded: suite.Loaded, backbone: str):
    return loaded.cells(backbone).values()


@pytest.mark.parametrize("quick", [False, True])
def test_every_claim_of_the_paper_can_be_measured(quick: bool):
    for loaded in paper(quick=quick):  # which checks names of figures, tables, measures and arms
        for claim in loaded.item.claims:
            assert not claim.published or published.said(list(claim.published))
        found = list(suite.evaluations(loaded, loaded.cells("emoji"), Path("runs")))
        assert bool(found) == bool(loaded.item.evaluations)


def test_sd15_has_the_published_settings(monkeypatch):
    monkeypatch.setitem(sys.modules, "hpsv2", None)
    (truncation,) = [item for item in paper("sd15") if item.name == "truncation"]
    trials = truncation.trials(load_preset("sd15"))
    config = trials["hpsv2", "alignprop"].config
    assert (config.sampling_steps, config.guidance, config.batch_size) == (50, 7.5, 128)
    assert trials["hpsv2", "K = 10"].config.truncation.k == 10
    assert {trial.task for trial in trials.values()} == {"hpdv2"}
    with pytest.raises(suite.UserError, match="needs the package hpsv2"):
        truncation.cells("sd15")


def test_hpsv2s_prompts_come_from_its_package(monkeypatch):
    class Package:
        @staticmethod
        def benchmark_prompts(style: str) -> dict[str, list[str]]:
            return {s: [f"{s} {i}" for i in range(800)] for s in ("anime", "photo", "a", "b")}

    monkeypatch.setitem(sys.modules, "hpsv2", Package)
    task = load_task("hpdv2")
    assert (len(task.train), len(task.unseen)) == (752, 50)
    assert not set(task.train) & set(task.unseen)
    assert sum(p.startswith("anime") for p in task.train) == 188


def test_the_cost_is_said_before_it_starts(monkeypatch):
    """Hours of a whole suite: those of each trial, once for each cell."""

    def plan(name, config, model, budget):
        values = {"steps_in_budget": 10, "hours": {suite.GPU: 2.0}}
        return {"keep": {"all": values | {"peak_bytes": 9e11}, "latents": values | PEAK}}

    PEAK = {"peak_bytes": 1e10}
    monkeypatch.setattr(suite.forecast, "plan", plan)
    monkeypatch.setattr(suite, "MetaModel", lambda *a: None)
    assert "sd15" in SHAPES
    *lines, total = suite.cost(paper("sd15"), "sd15")
    cells = {
        (t, item.item.budget)
        for item in paper("sd15")
        for t in item.trials(load_preset("sd15")).values()
    }
    assert total.startswith(f"{2.0 * len(cells):.4g} hours")
    assert all("(latents)" in line for line in lines[1:])
    assert any("all weights" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "papre"], "unknown suite 'papre'; did you mean 'paper'?"),
        (["--suite", "paper", "--only", "headlin"], "--only headlin: did you mean 'headline'?"),
        (["--suite", "nowhere.toml"], "no such file"),
        (["--suite", "BAD.toml"], "unknown key 'rewardz'; did you mean 'rewards'?"),
        (["--suite", "paper", "--only", "memory", "--shard", "3"], "write I/N"),
    ],
)
def test_bad_names_are_one_clear_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("BAD").mkdir()
    Path("BAD.toml").write_text('items = ["x"]\n')
    Path("BAD/x.toml").write_text('title = "X"\nrewardz = ["jpeg"]\n')
    assert run_benchmark.main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_every_file_of_the_paper_is_in_its_list():
    path = registry.suites.get("paper")
    listed = read_toml(path)["items"]
    assert sorted(listed) == sorted(p.stem for p in path.with_suffix("").glob("*.toml"))


SHARED_RIGHT = 'items = ["x"]\nbudget = "steps=1"\nseeds = [0]\ntask = "animals"\n'
ITEM_RIGHT = 'title = "X"\nrewards = ["jpeg"]\narms = ["alignprop"]\n'
CLAIM = 'paper = "So."\nmeasure = "gain"\narms = ["alignprop"]\nsplit = "train"\n'


@pytest.mark.parametrize(
    ("shared", "item", "message"),
    [
        ('seeds = "a"', "", "mine.toml: seeds must be a list of int, not 'a'"),
        ("items = 3", "", "mine.toml: items must be a list of files in"),
        ("budget = 3", "", "mine.toml: budget must be str, not 3"),
        ("quick = 3", "", "mine.toml: quick must be a table, not 3"),
        ("[sd15]\nseeds = 3", "", "mine.toml, table sd15: seeds must be a list of int, not 3"),
        ("[quick]\nsedes = [3]", "", "table quick: unknown key 'sedes'; did you mean 'seeds'"),
        ("", "arms = 3", "x.toml: arms must be a table of tables, not 3"),
        ("", "arms = [3]", "x.toml: arms must be a table of tables, not [3]"),
        ("", "arms.a = { rnk = 0 }", "x.toml.arms.a: unknown key 'rnk'; did you mean 'rank'"),
        ("", 'figures = ["headlin"]', "figures: unknown 'headlin'; did you mean 'headline'"),
        ("", 'tables = ["tabel"]', "tables: unknown 'tabel'; did you mean 'table'"),
        ("", "evaluation = { train_evry = 3 }", "did you mean 'train_every'"),
        ("", "claims = 3", "claims must be a list of tables, not 3"),
        ("", f"[[claims]]\n{CLAIM}".replace("measure", "mesure"), "did you mean 'measure'"),
        ("", '[[claims]]\npaper = "So."', "x.toml.claims[0]: missing measure"),
        ("", f"[[claims]]\n{CLAIM}".replace("gain", "gian"), "did you mean 'gain'"),
        ("", f"[[claims]]\n{CLAIM}".replace("split =", "of ="), "claim by gain misses split"),
        ("", f"[[claims]]\n{CLAIM}".replace('["al', '["all'), "did you mean 'alignprop'"),
        ("", 'evaluations = [{ arm = "alignprop", rewards = [1], parts = 2 }]', "positions"),
        ("", 'evaluations = [{ arm = "alignprop", rewards = [0] }]', "sweep or parts"),
    ],
)
def test_a_mistake_in_a_suite_is_one_clear_line(shared, item, message, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    text = shared if item.startswith("[[") else f"{shared}\n{item}"
    keys = {line.split(" ")[0] for line in text.splitlines()}

    def without(text: str) -> str:
        return "".join(f"{line}\n" for line in text.splitlines() if line.split(" ")[0] not in keys)

    (tmp_path / "mine.toml").write_text(without(SHARED_RIGHT) + shared)
    right = without(ITEM_RIGHT)
    if item.startswith("arms.a"):
        right = right.replace('arms = ["alignprop"]\n', "")
    (tmp_path / "mine" / "x.toml").write_text(right + item)
    assert run_benchmark.main(["suite", str(tmp_path / "mine.toml"), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_every_value_of_a_suites_cell_says_where_it_comes_from(place: Path, tiny_folder: Path):
    chosen = Chosen(suite=str(place / "small.toml"), backbone=str(tiny_folder), quick=True)
    curves, _ = suite.load(chosen)
    spec = curves.cells(str(tiny_folder))["jpeg", "first", 0]
    item, shared = place / "small" / "curves.toml", place / "small.toml"
    assert spec.sources["budget"] == f"{shared}, table quick"
    assert spec.sources["seed"] == spec.sources["task"] == str(shared)
    assert spec.sources["reward"] == spec.sources["rank"] == str(item)
    assert spec.sources["config.batch_size"] == f"{item}, first"
    assert spec.sources["config.optimizer.lr"] == "preset emoji, table alignprop"
    assert spec.sources["evaluation"] == "preset emoji"


def test_code_that_a_suite_names_is_not_run(tmp_path: Path, capsys):
    (tmp_path / "mine").mkdir()
    code = tmp_path / "theirs.py"
    code.write_text("def score(images, prompts):\n    return [0.0 for _ in images]\n")
    (tmp_path / "mine.toml").write_text(SHARED_RIGHT)
    item = ITEM_RIGHT.replace("jpeg", f"{code}:score").replace("alignprop", "ddpo")
    (tmp_path / "mine" / "x.toml").write_text(item)
    assert run_benchmark.main(["suite", str(tmp_path / "mine.toml"), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"--plugin {code}" in error and error.count("\n") == 1
    chosen = Chosen(suite=str(tmp_path / "mine.toml"), plugin=(code,))
    assert len(suite.load(chosen)[0].cells("emoji")) == 1


def test_a_plugin_adds_a_suite(place: Path, fresh_registry):
    @registry.register_suite("ours")
    def ours() -> Path:
        """Two small items."""
        return place / "small.toml"

    assert [one.name for one in suite.load(Chosen(suite="ours"))] == ["curves", "weights"]
    assert registry.suites.summaries["ours"] == "Two small items."
