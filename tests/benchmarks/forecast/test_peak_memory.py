"""The planned peak is that of the run, and what fits is kept."""

import pytest
import torch
from test_meta_model import pack

from benchmarks.backbone.checkpointing import KEEPS
from benchmarks.conformance import contract
from benchmarks.forecast import dry_run, peak_memory
from benchmarks.forecast.live_bytes import Live
from benchmarks.forecast.meta_model import MetaModel


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
def test_a_few_micro_batches_tell_of_many(tiny_meta: MetaModel, name: str, keep, monkeypatch):
    config = contract.small_config(name).resized(16)
    assert [fewer.update_size for fewer in peak_memory.smaller(config)] == [4, 8]
    few = peak_memory.peak(name, config, tiny_meta, keep, range(2))
    monkeypatch.setattr(peak_memory, "smaller", lambda config: [])
    assert few == pytest.approx(
        peak_memory.peak(name, config, tiny_meta, keep, range(2)), rel=0.001
    )


_models: list[MetaModel] = []


def _emoji() -> MetaModel:
    if not _models:
        _models.append(MetaModel("emoji", "fp32"))
    return _models[0]


def test_what_fits_is_kept(
    tiny_meta: MetaModel, tiny_contract: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dry_run, "STEPS", 1)
    config = contract.bench("alignprop-full").method.config  # type: ignore[attr-defined]
    cpu = torch.device("cpu")
    assert peak_memory.choose("alignprop-full", config, "some/hub-id", "fp32", cpu) == "latents"
    monkeypatch.setattr(peak_memory, "MetaModel", lambda *arguments: tiny_meta)
    peaks = [
        peak_memory.peak("alignprop-full", config, tiny_meta, keep, range(1)) for keep in KEEPS
    ]
    assert peaks == sorted(peaks, reverse=True)
    for keep, free in zip(KEEPS, peaks, strict=True):
        free = (free + tiny_meta.packed_bytes) / peak_memory.FILL
        monkeypatch.setattr(peak_memory, "available", lambda device, free=free: free)
        assert peak_memory.choose("alignprop-full", config, "tiny", "fp32", cpu) == keep
