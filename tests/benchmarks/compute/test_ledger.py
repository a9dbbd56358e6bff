"""The ledger's counts and FLOPs equal what really happened."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import registry
from benchmarks.api import Context
from benchmarks.backbone import kernels
from benchmarks.backbone.checkpointing import KEEPS
from benchmarks.compute.flops import FlopCounter
from benchmarks.compute.ledger import Pass
from benchmarks.conformance import contract
from methods.alignprop import AlignProp, Config, Truncation

#: Of methods that draw rounds: sampling keeps what the update needs only if there is one.
ONE_UPDATE = {
    name: {"updates_per_round": 1} for name in ("ddpo", "grpo", "mixgrpo", "d3po", "prdp", "rwr")
}


#: All ways of keeping for methods that differ most in it; the others take turns.
ALL_KEEPS = ("alignprop", "ddpo", "prdp", "rwr")
CASES = [
    (name, keep)
    for i, name in enumerate(registry.methods.names())
    for keep in (KEEPS if name in ALL_KEEPS else [KEEPS[i % len(KEEPS)]])
]


@pytest.mark.parametrize(("name", "keep"), CASES)
def test_flops_equal_the_flop_counter(tiny_contract: None, name: str, keep):
    this = contract.bench(name, **ONE_UPDATE.get(name.partition("-")[0], {}))
    backbone = this.backbone
    backbone.use(keep)
    backbone.encode(["", *this.method.context.prompts(0, 3)])  # once, and off the clock
    with kernels.reference_operators(), sdpa_kernel(SDPBackend.MATH), FlopCounter() as counter:
        this.run(range(2))
    flops = backbone.ledger.flops
    backbone.use("all")
    # The base model's passes have the price of those with LoRA matrices, which are 4 % of these.
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize(("keep", "recomputed"), [("all", 0), ("latents", 32), ("blocks", 64)])
def test_counts_are_known(context: Context, keep, recomputed):
    """Batch 4, four steps, guidance counts two."""
    context.backbone.use(keep)
    step(context, truncation=Truncation(mode="full"))
    totals = context.backbone.ledger.totals()
    assert (totals["nfe"], totals["denoiser_backward"]) == (32, 32)
    assert totals["denoiser_recompute"] == recomputed
    assert (totals["reward_queries"], totals["reward_gradients"], totals["images"]) == (4, 4, 4)


def step(context: Context, **settings) -> None:
    config = Config(batch_size=4, micro_batch=2, sampling_steps=4, **settings)
    AlignProp(config, context).step(0)


def test_attention_is_not_free():
    """The counter has no formula for the fused kernel of CPUs, and would take it to be free."""
    query = torch.zeros(1, 2, 8, 4)
    with FlopCounterMode(display=False) as silent:
        F.scaled_dot_product_attention(query, query, query)
    assert silent.get_total_flops() == 0
    with pytest.raises(RuntimeError, match="flash_attention_for_cpu has no price"), FlopCounter():
        F.scaled_dot_product_attention(query, query, query)
    with sdpa_kernel(SDPBackend.MATH), FlopCounter() as counter:
        F.scaled_dot_product_attention(query, query, query)
    assert counter.get_total_flops() == 2 * (2 * 2 * 8 * 8 * 4)  # two products


def test_prices_do_not_depend_on_kernels(context: Context):
    """Those of modules that no kernel of ours touches."""
    backbone, paid = context.backbone, dict(context.backbone.ledger.prices)
    for module in (backbone.denoiser, backbone.autoencoder):
        for part in module.modules():
            kernel = type(part).__module__.startswith("benchmarks.")
            if kernel and not isinstance(part, kernels.LoraLinear):
                part.__class__ = type(part).__mro__[1]
    assert not any(isinstance(part, kernels.Conv2d) for part in backbone.denoiser.modules())
    backbone.price()
    assert backbone.ledger.prices == paid


def test_harmless_operators_are_free():
    image = torch.rand(1, 3, 8, 8)
    with FlopCounter() as counter:
        F.interpolate(image, size=4, mode="bilinear", antialias=True).lgamma().long()
    assert counter.get_total_flops() == 0


def test_a_call_behind_its_back_is_counted(context: Context):
    backbone = context.backbone
    with torch.no_grad():
        (text,) = backbone.encode(["a"] * 3)
        backbone.denoiser(torch.zeros(3, 4, 8, 8), 0, encoder_hidden_states=text)
    assert backbone.ledger.counts[Pass("denoiser", "forward")] == 3


def test_evaluation_is_off_the_clock(context: Context):
    backbone = context.backbone
    with backbone.ledger.paused():
        backbone.decode(torch.zeros(1, *backbone.latent_shape))
    assert backbone.ledger.flops == 0


def test_save_and_restore(context: Context):
    ledger = context.backbone.ledger
    step(context)
    before, state = ledger.totals(), ledger.state_dict()
    step(context)
    assert ledger.totals() != before
    ledger.load_state_dict(state)
    assert ledger.totals() == before
