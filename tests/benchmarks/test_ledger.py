"""The ledger's counts and FLOPs equal what really happened."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.api import Context, Method
from methods.alignprop import AlignProp, Truncation
from methods.alignprop import Config as AlignPropConfig
from methods.ddpo import DDPO
from methods.ddpo import Config as DDPOConfig
from methods.refl import Config as ReFLConfig
from methods.refl import ReFL
from methods.rwr import RWR
from methods.rwr import Config as RWRConfig

FULL = Truncation(mode="full")
BATCH = {"batch_size": 4, "micro_batch": 2, "sampling_steps": 4}
ROUND = {"samples_per_round": 4, "updates_per_round": 1, "micro_batch": 2, "sampling_steps": 4}


def method(name: str, context: Context) -> Method:
    return {
        "stored": lambda: AlignProp(
            AlignPropConfig(**BATCH, truncation=FULL, recompute=False), context
        ),
        "recomputed": lambda: AlignProp(AlignPropConfig(**BATCH, truncation=FULL), context),
        "k1": lambda: AlignProp(
            AlignPropConfig(**BATCH, truncation=Truncation(mode="fixed")), context
        ),
        "ddpo": lambda: DDPO(DDPOConfig(**ROUND), context),
        "rwr": lambda: RWR(RWRConfig(**ROUND), context),
        "refl": lambda: ReFL(ReFLConfig(**BATCH, earliest=3, latest=3), context),
    }[name]()


@pytest.mark.parametrize("name", ["stored", "recomputed", "k1", "ddpo", "rwr", "refl"])
def test_flops_equal_the_flop_counter(context: Context, name: str):
    chosen = method(name, context)
    context.backbone.encode(["cat", "dog", "fox", ""])  # captions are encoded once, off the clock
    with FlopCounterMode(display=False) as counter:
        chosen.step(0)
    assert context.backbone.ledger.flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_counts_are_known(context: Context):
    """Batch 4, four steps, guidance counts two."""
    ledger = context.backbone.ledger
    method("recomputed", context).step(0)
    totals = ledger.totals()
    assert (totals["nfe"], totals["unet_recompute"], totals["unet_backward"]) == (32, 32, 32)
    assert (totals["reward_queries"], totals["reward_gradients"], totals["images"]) == (4, 4, 4)


def test_a_call_behind_its_back_is_counted(context: Context):
    backbone = context.backbone
    with torch.no_grad():
        backbone.unet(torch.zeros(3, 4, 8, 8), 0, encoder_hidden_states=backbone.encode(["a"] * 3))
    assert backbone.ledger.counts["unet_forward"] == 3


def test_evaluation_is_off_the_clock(context: Context):
    backbone = context.backbone
    with backbone.ledger.paused():
        backbone.decode(torch.zeros(1, *backbone.latent_shape))
    assert backbone.ledger.flops == 0


def test_save_and_restore(context: Context):
    ledger = context.backbone.ledger
    method("k1", context).step(0)
    before, state = ledger.totals(), ledger.state_dict()
    method("k1", context).step(0)
    assert ledger.totals() != before
    ledger.load_state_dict(state)
    assert ledger.totals() == before
