"""What the planner says is what happens: counts, FLOPs and bytes."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from benchmarks.backbone import load
from benchmarks.backbone.base import BaseBackbone
from benchmarks.backbone.checkpointing import KEEPS
from benchmarks.backbone.kernels import packed
from benchmarks.compute.ledger import KINDS, Ledger
from benchmarks.conformance import contract
from benchmarks.forecast import dry_run, forecast, peak_memory
from benchmarks.forecast.ladder import ladder
from benchmarks.forecast.live_bytes import Live
from benchmarks.forecast.meta_model import MetaModel
from benchmarks.forecast.shapes import SHAPES

METHODS = ["alignprop", "alignprop-full", "ddpo", "rwr", "refl"]


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> MetaModel:
    return MetaModel(str(tiny_folder), "fp32")


@pytest.mark.parametrize("name", METHODS)
def test_counts_are_those_of_the_run(tiny: MetaModel, tiny_contract: None, name: str, monkeypatch):
    monkeypatch.setattr(dry_run, "STEPS", 3)
    this = contract.bench(name)
    this.run(range(3))
    rows = dry_run.counted(name, this.method.config, tiny, "all")  # type: ignore[attr-defined]
    assert {k: sum(row[k] for row in rows) for k in KINDS} == {
        k: this.counts.get(k, 0) for k in KINDS
    }
    prices = {k: v for k, v in this.backbone.ledger.prices.items() if k.part != "reward"}
    assert prices == {k: v for k, v in tiny.prices.items() if k.part != "reward"}
    assert all(prices.values())


def pack(backbone: BaseBackbone) -> None:
    """One pass forth and back, so that frozen weights have their copies."""
    text, latents = backbone.encode(["a cat"]), torch.zeros(1, *backbone.latent_shape)
    with backbone.ledger.paused():
        noise = backbone.predict(latents.requires_grad_(), 500, text, 1.0)
        backbone.decode(noise).sum().backward()
    for parameter in backbone.parameters():
        parameter.grad = None


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("name", ["alignprop-full", "ddpo"])
def test_peak_memory_is_that_of_the_run(name: str, keep):
    """On the embedded model, every storage of the real step tracked."""
    this = contract.bench(name)
    this.backbone.use(keep)
    pack(this.backbone)
    try:
        with Live() as live:
            this.run(range(1))
    finally:
        this.backbone.use("all")
    config = this.method.config  # type: ignore[attr-defined]
    planned = peak_memory.peak(name, config, _emoji(), keep, range(1))
    assert planned == pytest.approx(live.peak, rel=0.1)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("name", ["alignprop-full", "ddpo", "rwr"])
def test_a_few_micro_batches_tell_of_many(tiny: MetaModel, name: str, keep, monkeypatch):
    config = contract.small_config(name).resized(16)
    assert [fewer.update_size for fewer in peak_memory.smaller(config)] == [4, 8]
    few = peak_memory.peak(name, config, tiny, keep, range(2))
    monkeypatch.setattr(peak_memory, "smaller", lambda config: [])
    assert few == pytest.approx(peak_memory.peak(name, config, tiny, keep, range(2)), rel=0.001)


_models: list[MetaModel] = []


def _emoji() -> MetaModel:
    if not _models:
        _models.append(MetaModel("emoji", "fp32"))
    return _models[0]


def test_live_counts_what_lives():
    start = torch.zeros(100)
    with Live() as live:
        kept = start + 1
        dropped = torch.empty(1000)
        view = kept[10:]
        assert (live.now, live.peak) == (4400, 4400)
        del dropped
        assert (live.now, live.peak) == (400, 4400)
        del kept
        assert live.now == 400  # the view holds it
        del view
        assert live.now == 0


def test_what_fits_is_kept(tiny: MetaModel, tiny_contract: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dry_run, "STEPS", 1)
    config = contract.bench("alignprop-full").method.config  # type: ignore[attr-defined]
    cpu = torch.device("cpu")
    assert peak_memory.choose("alignprop-full", config, "some/hub-id", "fp32", cpu) == "latents"
    monkeypatch.setattr(peak_memory, "MetaModel", lambda *arguments: tiny)
    peaks = [peak_memory.peak("alignprop-full", config, tiny, keep, range(1)) for keep in KEEPS]
    assert peaks == sorted(peaks, reverse=True)
    for keep, free in zip(KEEPS, peaks, strict=True):
        free = (free + tiny.packed_bytes) / peak_memory.FILL
        monkeypatch.setattr(peak_memory, "available", lambda device, free=free: free)
        assert peak_memory.choose("alignprop-full", config, "tiny", "fp32", cpu) == keep


@pytest.mark.parametrize(
    "precision",
    [
        "fp32",
        pytest.param(
            "bf16", marks=pytest.mark.skipif(not packed.BF16, reason="no bfloat16 on this CPU")
        ),
    ],
)
def test_copies_of_packed_weights_are_counted(tiny_folder: Path, precision):
    backbone = load(str(tiny_folder), Ledger(), precision)
    pack(backbone)
    copies, seen = list[torch.Tensor](), list(backbone.denoiser.parameters())
    seen += backbone.autoencoder.decoder.parameters()
    while seen:  # what is made of weights may be packed in its turn
        made = [value for _, value in vars(seen.pop()).values() if value.dim() > 1]
        seen += [value for value in made if not value.is_mkldnn]
        copies += made
    found = sum(copy.numel() * copy.element_size() for copy in copies)
    assert found == pytest.approx(MetaModel(str(tiny_folder), precision).packed_bytes, rel=0.2)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("sd15", 859_520_964), ("sd21", 865_910_724), ("sdxl", 2_567_463_684)],
)
def test_shapes_have_the_published_number_of_parameters(name: str, parameters: int):
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(SHAPES[name].unet))
    assert sum(p.numel() for p in unet.parameters()) == parameters


@pytest.mark.slow
def test_the_papers_ladder():
    """SD v1.5, one guided prediction, 16 bits, attention probabilities kept."""
    model = MetaModel("sd15", "fp16")
    rungs = ladder(model)
    assert model.trainable == 797_184
    assert rungs["stored_per_sampling_step"] / forecast.GIB == pytest.approx(7.2, abs=0.1)
    assert rungs["stored_all"] / forecast.GIB == pytest.approx(358, rel=0.02)
    assert rungs["recomputed_per_sampling_step"] / forecast.GIB == pytest.approx(9.04, abs=0.1)
    assert rungs["recomputed_inside"] / forecast.GIB == pytest.approx(3.31, abs=0.1)
    # Attention in closed form, 4 n m c: five blocks at each of three levels, one in the middle.
    levels = [(4096, 320, 5), (1024, 640, 5), (256, 1280, 5), (64, 1280, 1)]
    attention = sum(blocks * 4 * n * (n + 77) * c for n, c, blocks in levels)
    dense = 2 * 339e9  # multiply-adds without attention products (BK-SDM, arXiv 2305.15798)
    assert rungs["flops_guided_forward"] == pytest.approx(2 * (dense + attention), rel=0.01)
