"""The paper's ladder from full backpropagation to one GPU, counted."""

from __future__ import annotations

from benchmarks.compute.ledger import Pass
from benchmarks.forecast.meta_model import MetaModel, WantedGradients


def ladder(model: MetaModel, samples: int = 2, steps: int = 50) -> dict[str, float]:
    """The paper's comparison, counted for one guided prediction with plain attention.

    16 bits, guidance in one batch of two, attention probabilities kept; activations of the denoiser
    alone, in bytes, and the FLOPs of a guided forward pass. A tensor is alive until its last use,
    so that a backward pass drops attention probabilities as it goes. Attention's products count
    once: counted twice, SD v1.5 would have 1.86 TFLOP.
    """
    wanted: WantedGradients = "input"
    stored, blocks = (
        model.denoiser(by_block, False, [wanted])(samples, wanted) for by_block in (False, True)
    )
    return {
        "stored_per_sampling_step": stored.kept,
        "stored_all": steps * stored.kept,
        "recomputed_per_sampling_step": stored.kept + max(stored.forward, stored.backward),
        "recomputed_inside": blocks.kept + max(blocks.forward, blocks.backward),
        "flops_guided_forward": 2 * model.prices[Pass("denoiser", "forward")],
    }


def rungs(backbone: str) -> dict[str, float]:
    """The paper's ladder from full backpropagation to one GPU: bytes to train on one picture.

    ``ladder``'s activations, the frozen weights in 16 bits, and of each trained weight 16 bytes:
    itself, its gradient and two moments, in 32 bits.
    """
    found = {}
    for name, rank in (("all weights", 0), ("LoRA", 4)):
        model = MetaModel(backbone, "fp16", rank)
        rest, steps = model.frozen_bytes + 16 * model.trainable, ladder(model)
        found[f"{name}, every sampling step stored"] = rest + steps["stored_all"]
        found[f"{name}, sampling steps recomputed"] = rest + steps["recomputed_per_sampling_step"]
        found[f"{name}, blocks recomputed too"] = rest + steps["recomputed_inside"]
    return found
