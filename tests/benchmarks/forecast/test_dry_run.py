"""Counting against modules that compute nothing gives the counts of the run."""

import pytest
import torch

from benchmarks.compute.ledger import KINDS
from benchmarks.conformance import contract
from benchmarks.forecast import dry_run
from benchmarks.forecast.meta_model import MetaModel
from benchmarks.streams import Streams

METHODS = [
    *("alignprop", "alignprop-full", "ddpo", "dpok", "prdp", "rwr", "refl"),
    *("draft-lv", "drtune", "direct-align", "adjoint-matching"),
]


@pytest.mark.parametrize("name", METHODS)
def test_counts_are_those_of_the_run(
    tiny_meta: MetaModel, tiny_contract: None, name: str, monkeypatch
):
    monkeypatch.setattr(dry_run, "STEPS", 3)
    this = contract.bench(name)
    this.run(range(3))
    rows = dry_run.counted(name, this.method.config, tiny_meta, "all")  # type: ignore[attr-defined]
    assert {k: sum(row[k] for row in rows) for k in KINDS} == {
        k: this.counts.get(k, 0) for k in KINDS
    }
    parts, paid = ("denoiser", "decoder"), this.backbone.ledger.prices
    prices = {k: v for k, v in paid.items() if k.part in parts}
    assert prices == {k: v for k, v in tiny_meta.prices.items() if k.part in parts}
    assert all(prices.values())


def test_noise_has_a_shape_only_and_what_decides_is_drawn():
    streams, real = dry_run.ShapeOnlyStreams(3), Streams(3)
    assert torch.equal(streams.normal("noise", 0, [0, 5], (4, 8, 8)), torch.zeros(2, 4, 8, 8))
    drawn = streams.normal("truncation", 2, [0, 5], (1,))
    assert torch.equal(drawn, real.normal("truncation", 2, [0, 5], (1,)))
