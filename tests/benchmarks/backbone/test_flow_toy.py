"""Another family: a flow-matching toy that methods train, checks pass and ``plan`` plans."""

import math
from dataclasses import replace

import pytest
import torch
from flow_toy import Flow, FlowToy

from benchmarks import registry
from benchmarks.api import Backbone, Preset, Sampler
from benchmarks.backbone import load
from benchmarks.backbone.checkpointing import KEEPS
from benchmarks.compute.budget import Budget
from benchmarks.compute.ledger import Ledger
from benchmarks.config import load_preset
from benchmarks.conformance import contract
from benchmarks.forecast import dry_run
from benchmarks.forecast.forecast import plan
from benchmarks.forecast.meta_model import MetaModel

METHODS = ("alignprop", "ddpo", "refl", "rwr")


@pytest.fixture(autouse=True)
def toy(fresh_registry, monkeypatch: pytest.MonkeyPatch) -> FlowToy:
    """The toy is registered, and what the contract is checked on."""

    @registry.register_backbone("flow-toy")
    def flow_toy() -> Preset:
        return replace(load_preset("emoji"), model=FlowToy)

    model = load("flow-toy", Ledger())
    assert isinstance(model, FlowToy)
    start = model.weights()
    monkeypatch.setattr(contract, "model", lambda: (model, start))
    monkeypatch.setattr(contract, "BACKBONE", "flow-toy")
    return model


@pytest.mark.parametrize("name", registry.methods.names())
def test_every_method_trains_it(name: str, toy: FlowToy):
    this = contract.bench(name)
    start, end = toy.weights(), this.run(range(3))
    assert any(not torch.equal(start[k], end[k]) for k in start)
    assert all(value.isfinite().all() for value in end.values())


@pytest.mark.parametrize("check", contract.CHECKS)
@pytest.mark.parametrize("name", METHODS)
def test_it_passes_the_checks(name: str, check: str):
    contract.CHECKS[check](name)


@pytest.mark.parametrize("name", [*METHODS, "dpok"])  # with a network of its own
def test_it_is_planned(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dry_run, "STEPS", 3)
    this = contract.bench(name)
    this.run(range(3))
    model = MetaModel("flow-toy", "fp32")
    found = plan(name, this.method.config, model, Budget("steps", 10))  # type: ignore[attr-defined]
    assert tuple(found["keep"]) == KEEPS
    ledger = this.backbone.ledger
    assert 3 * found["keep"]["all"]["flops_per_step"] == pytest.approx(ledger.flops)
    assert 3 * found["nfe_per_step"] == ledger.totals()["nfe"]


def test_it_is_a_backbone(toy: FlowToy):
    model: Backbone = toy
    sampler: Sampler = model.sampler(4)
    assert model.latent_shape == (3, 4, 6) and len(sampler) == 4
    assert model.decode(torch.zeros(2, *model.latent_shape)).shape == (2, 3, 8, 12)


def test_renoising_and_prediction_agree():
    """Where the output is the true velocity, x0 and noise are what they were."""
    sampler, (x0, noise) = Flow([1.0, 0.6, 0.3, 0.0], 0.7), torch.randn(2, 2, 3, 4, 6)
    for i in range(3):
        latents = sampler.renoised(i, x0, noise)
        torch.testing.assert_close(sampler.x0(i, noise - x0, latents), x0)
        torch.testing.assert_close(sampler.noise(i, noise - x0, latents), noise)
        if i:  # at the first there is noise alone
            torch.testing.assert_close(sampler.denoised(i, latents, noise), x0)
        plain = Flow(sampler.sigmas, 0.0).mean(i, noise - x0, latents)
        then = sampler.sigmas[i + 1]
        torch.testing.assert_close(plain, (1 - then) * x0 + then * noise)
        assert sampler.std(i) > 0 and math.isfinite(sampler.std(i))
