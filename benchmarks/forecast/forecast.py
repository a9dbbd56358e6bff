"""``plan``: what methods will cost, before anything runs; needs no weights, GPU or network.

How it counts:

- Prices of passes in FLOPs, on the meta device, as the ledger measures them.
- The real method with its real configuration runs ``STEPS`` optimizer steps against modules that
  compute nothing; the ledger counts their passes. Same seed, same draws, same counts as the run.
- Memory: the heaviest of these steps runs once more on the meta device, where the denoiser and the
  decoder hold as many bytes as the real ones do for the same batch; every storage alive is counted
  (parameters, gradients and optimizer state too). Their bytes are measured with one and two samples
  and extended linearly. bfloat16 weights and activations for models whose shape is written down,
  32-bit otherwise; attention by a fused kernel that keeps no probabilities. Not counted: the
  reward's own memory, the allocator's fragments, 32-bit normalisation under autocast.
"""

from __future__ import annotations

from typing import Any

from benchmarks.backbone.checkpointing import KEEPS
from benchmarks.compute.budget import Budget
from benchmarks.compute.ledger import KINDS, passes
from benchmarks.forecast.dry_run import counted, started
from benchmarks.forecast.meta_model import MetaModel
from benchmarks.forecast.peak_memory import heaviest, peak
from benchmarks.streams import Streams

GIB = 2**30
#: Peak 16-bit FLOP/s with 32-bit sums and no sparsity, from the makers' data sheets.
GPUS = {"A100 80 GB": 312e12, "H100 SXM": 989e12, "RTX 4090": 165e12, "RTX 3090": 71e12}
UTILISATION = 0.4
#: arXiv 2310.03739, page 5, as quoted by others (not read in the paper itself).
LADDER = "about 1 TB for full backpropagation, about 500 GB with LoRA, 15 GB with checkpointing"


def plan(name: str, config: Any, model: MetaModel, budget: Budget) -> dict[str, Any]:
    """All that can be said of one method before it runs; FLOPs and counts per optimizer step."""
    prices = model.prices
    started(name, config, model.backbone, Streams(0))  # a network of its own is priced
    result: dict[str, Any] = {"trainable_parameters": model.trainable, "keep": {}}
    for keep in KEEPS:
        rows = counted(name, config, model, keep)
        mean = {kind: sum(row[kind] for row in rows) / len(rows) for kind in KINDS}
        flops = {
            kind.name: mean[kind] * prices[kind] for kind in KINDS if mean[kind] * prices[kind]
        }
        nfe, queries = passes(mean, "denoiser", "forward"), passes(mean, "reward", "forward")
        result |= {
            "nfe_per_step": nfe,
            "reward_queries_per_step": queries,
            "reward_gradients_per_step": passes(mean, "reward", "backward"),
            "images_per_step": passes(mean, "decoder", "forward"),
        }
        found: dict[str, Any] = {
            "flops_per_step": sum(flops.values()),
            "flops_by_part": flops,
            "peak_bytes": model.frozen_bytes + peak(name, config, model, keep, heaviest(rows)),
        }
        per_step = {"flops": found["flops_per_step"], "queries": queries, "nfe": nfe, "steps": 1.0}
        if budget.kind in per_step:  # seconds depend on the device
            steps = int(budget.amount / per_step[budget.kind])
            work = steps * found["flops_per_step"]
            found |= {
                "steps_in_budget": steps,
                "reward_queries_in_budget": steps * queries,
                "hours": {gpu: work / (speed * UTILISATION) / 3600 for gpu, speed in GPUS.items()},
            }
        result["keep"][keep] = found
    return result
