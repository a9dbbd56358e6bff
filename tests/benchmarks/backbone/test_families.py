"""Every family draws its pipeline's pictures, trains by every method, and gives its LoRA back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpointing import gradients
from tiny_families import FAMILIES, PROMPTS, drawn

import run_benchmark
from benchmarks import registry
from benchmarks.backbone import family, load, lora_file
from benchmarks.backbone.checkpointing import KEEPS
from benchmarks.backbone.flux import Flux
from benchmarks.backbone.pipeline import PipelineBackbone
from benchmarks.backbone.sd3 import StableDiffusion3
from benchmarks.compute.ledger import KINDS, Ledger
from benchmarks.conformance import contract
from benchmarks.experiments.soup import mix
from benchmarks.forecast import dry_run, peak_memory
from benchmarks.forecast.live_bytes import Live
from benchmarks.forecast.meta_model import MetaModel
from benchmarks.streams import Streams


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", autouse=True)
def little_text() -> Iterator[None]:
    """T5 reads eight letters, which is quicker."""
    with pytest.MonkeyPatch.context() as patch:
        for cls in (StableDiffusion3, Flux):
            patch.setattr(cls, "text_length", 8)
        yield


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family's tiny pipeline as a diffusers folder, and few prompts."""
    path = tmp_path_factory.mktemp(name)
    FAMILIES[name]().save_pretrained(path / "model")
    (path / "tiny.toml").write_text(
        'model = "model"\nlike = "emoji"\nresolution = [16, 16]\n[evaluation]\nsampling_steps = 2\n'
    )
    (path / "few.toml").write_text(
        'train = ["cat"]\nunseen = ["snail"]\nheld_out = ["colourfulness"]\n'
        "[evaluation]\ntrain_every = 1\ntrain_images = 1\nunseen_images = 1\n"
    )
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> PipelineBackbone:
    found = load(str(folder / "tiny.toml"), Ledger())
    assert isinstance(found, PipelineBackbone)
    return found


@pytest.fixture
def bench(model: PipelineBackbone, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Methods under test work on this model."""
    start = model.weights()
    monkeypatch.setattr(contract, "SAMPLES", 4)
    monkeypatch.setattr(contract, "SAMPLING_STEPS", 3)
    monkeypatch.setattr(contract, "model", lambda: (model, start))
    monkeypatch.setattr(contract, "BACKBONE", str(folder / "tiny.toml"))
    yield
    model.load_weights(start)


def random_lora(model: PipelineBackbone, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(round(scale))
    for parameter in model.parameters():
        parameter.data = 0.3 * scale * torch.randn(parameter.shape, generator=generator)


def pictures(model: PipelineBackbone, noise: torch.Tensor, guidance: float = 2.5) -> torch.Tensor:
    final = model.sample(model.sampler(4), PROMPTS, noise, guidance=guidance).final
    with torch.no_grad():
        return model.decode(final)


def test_prompts_that_it_does_not_read_to_their_end_are_known(name: str, model):
    """SDXL's two CLIPs read 16 tokens here, T5 eight."""
    assert model.cut(["a cat"]) == {}
    for letters in (9, 30):
        prompt = "a" * letters
        assert set(model.cut(["a cat", prompt])) == (
            set() if name == "sdxl" and letters == 9 else {prompt}
        )


def test_it_draws_the_pictures_of_its_pipeline_whatever_their_sides(name: str, compared):
    pipeline = FAMILIES[name]()
    cls = family([type(pipeline).__name__])
    model = cls(FAMILIES[name](), Ledger(), resolution=(16, 24))
    noise = Streams(0).normal("noise", 0, range(2), model.latent_shape)
    assert noise.shape == (2, 4, 8, 12)
    for guidance in (1.0, 2.5):
        expected = drawn(pipeline, noise, guidance=guidance)
        compared("pictures", pictures(model, noise, guidance), expected, 1e-5)
    shapes = [tuple(column.shape[1:]) for column in model.encode(PROMPTS)]
    assert shapes == model.condition_shapes()


def test_its_lora_draws_the_same_in_plain_diffusers(name, model, bench, tmp_path, compared):
    noise = Streams(0).normal("noise", 0, range(2), model.latent_shape)
    plain = pictures(model, noise)
    random_lora(model)
    model.save_weights(tmp_path)
    pipeline = FAMILIES[name]()
    pipeline.load_lora_weights(tmp_path)
    expected = drawn(pipeline, noise)
    assert (plain - expected).abs().max() > 0.01
    compared("pictures", pictures(model, noise), expected, 1e-4)
    weights = model.weights()
    read = lora_file.read(tmp_path)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[key], weights[key]) for key in read)


def test_every_method_trains_it(bench: None):
    for method in registry.methods.names():
        this = contract.bench(method)
        start, end = this.backbone.weights(), this.run(range(2))
        moved = any(not torch.equal(start[k], end[k]) for k in start)
        assert moved and all(value.isfinite().all() for value in end.values()), method


def test_what_is_kept_changes_no_gradient(bench: None):
    stored, *others = [gradients("alignprop-full", keep) for keep in KEEPS]
    for other in others:
        assert stored.norm() > 0 and (other - stored).norm() < 1e-12 * stored.norm()


def test_resuming_changes_nothing(bench: None):
    contract.resuming_changes_nothing("ddpo")


def test_it_is_run_evaluated_and_mixed(model, bench: None, folder: Path, tmp_path: Path):
    """A cell of its own, with an evaluation, and half of its LoRA beside half of another."""
    contract.a_budget_is_kept("alignprop")
    states = []
    for scale in (1.0, 2.0):
        random_lora(model, scale)
        model.save_weights(tmp_path / str(scale))
        states.append(lora_file.read(tmp_path / str(scale)))
    soup = mix(states, [0.5, 0.5])
    key = next(iter(states[0])).removesuffix(lora_file.A)
    products = [state[key + lora_file.B] @ state[key + lora_file.A] for state in (*states, soup)]
    torch.testing.assert_close(products[2], (products[0] + products[1]) / 2)


def test_its_passes_are_planned(bench: None, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Two of the denoiser for each picture and step; one where it is told of the guidance."""
    this = contract.bench("alignprop-full")
    this.run(range(1))
    monkeypatch.setattr(dry_run, "STEPS", 1)
    config = this.method.config  # type: ignore[attr-defined]
    planner = MetaModel(str(folder / "tiny.toml"), "fp32")
    (planned,) = dry_run.counted("alignprop-full", config, planner, "all")
    assert planned == {kind: this.counts[kind] for kind in KINDS}


@pytest.mark.slow
def test_two_processes_equal_one(bench: None):
    contract.two_processes_equal_one("ddpo")


@pytest.mark.slow
@pytest.mark.parametrize("keep", KEEPS)
def test_its_peak_is_planned(bench: None, folder: Path, model: PipelineBackbone, keep):
    contract.bench("alignprop-full").run(range(1))  # so that frozen weights have their copies
    this = contract.bench("alignprop-full")
    this.backbone.use(keep)
    try:
        with Live() as live:
            this.run(range(1))
    finally:
        this.backbone.use("all")
    trained = sum(p.numel() * p.element_size() for p in model.parameters())  # made before
    config = this.method.config  # type: ignore[attr-defined]
    planner = MetaModel(str(folder / "tiny.toml"), "fp32")
    planned = peak_memory.peak("alignprop-full", config, planner, keep, range(1))
    assert planned == pytest.approx(live.peak + trained, rel=0.1)


@pytest.mark.slow
def test_commands_take_it(folder: Path, tmp_path: Path):
    tiny = ["--backbone", str(folder / "tiny.toml"), "--task", str(folder / "few.toml")]
    rewards = ["--reward", "colourfulness"]
    run = ["--methods", "alignprop", "--budget", "steps=1", "--out", str(tmp_path / "out")]
    small = ["--alignprop.sampling-steps", "2", "--alignprop.batch-size", "2"]
    assert run_benchmark.main([*run, *tiny, *rewards, *small]) == 0
    (lora,) = (tmp_path / "out").glob("*/pytorch_lora_weights.safetensors")
    words = ["evaluate", str(lora), str(lora.parent), "--mix", "0.5", "0.5"]
    assert run_benchmark.main([*words, "--out", str(tmp_path / "soup"), *tiny, *rewards]) == 0
