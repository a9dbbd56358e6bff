"""The ideal loop does the passes of ours and nothing else."""

from collections.abc import Callable

import pytest
from conftest import tiny_pipeline

from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import KINDS, Ledger
from benchmarks.compute.ledger import passes as count
from benchmarks.speed.ideal import Ideal
from benchmarks.speed.ours import Ours

BATCH, STEPS = 2, 4

PASSES = {
    "full, recomputed": ((STEPS, "latents"), lambda ideal: ideal.alignprop(STEPS, False)),
    "full, stored": ((STEPS, "all"), lambda ideal: ideal.alignprop(STEPS, True)),
    "K=1": ((1, "all"), lambda ideal: ideal.alignprop(1, True)),
    "DDPO": (None, lambda ideal: ideal.ddpo()),
}


@pytest.mark.parametrize("what", PASSES)
def test_the_ideal_loop_does_the_passes_of_ours(what: str):
    backbone = StableDiffusion(tiny_pipeline(), Ledger())
    ours = Ours(backbone, batch=BATCH, steps=STEPS, guidance=2.5)
    arguments, bare = PASSES[what]
    run = ours.alignprop(*arguments) if arguments else ours.ddpo("all")
    ideal = Ideal(backbone, BATCH, STEPS)
    assert passes(backbone, lambda: bare(ideal)) == passes(backbone, run)


def passes(backbone: StableDiffusion, run: Callable[[], None]) -> dict[str, int]:
    """Samples through U-Net and decoder, forward and backward, as the ledger counts them."""
    counts = backbone.ledger.counts
    counts.clear()
    run()
    forward = count(counts, "denoiser", "forward", "recompute")
    others = [k for k in KINDS if k.part == "decoder" or k.name.startswith("denoiser_backward")]
    return {"denoiser": forward} | {kind.name: counts[kind] for kind in others}
