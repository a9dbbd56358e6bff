"""``plan``: what methods will cost, before anything runs; needs no weights, GPU or network.

How it counts:

- Prices of passes in FLOPs, on the meta device, as the ledger measures them.
- The real method with its real configuration runs ``STEPS`` optimizer steps against modules that
  compute nothing; the ledger counts their passes. Same seed, same draws, same counts as the run.
- Memory: the heaviest of these steps runs once more on the meta device, where the U-Net and the
  decoder hold as many bytes as the real ones do for the same batch; every storage alive is counted
  (parameters, gradients and optimizer state too). Their bytes are measured with one and two samples
  and extended linearly. 16-bit weights and activations for SD v1.5, SD 2.1 and SDXL, 32-bit
  otherwise; attention by a fused kernel that keeps no probabilities. Not counted: the reward's
  own memory, the allocator's fragments, 32-bit normalisation under autocast.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from benchmarks import registry
from benchmarks.api import Context, Method, Reward, UserError
from benchmarks.backbone.checkpointing import PLANS, Plan, available
from benchmarks.backbone.lora_sd import LoraSD
from benchmarks.compute.budget import Budget
from benchmarks.compute.ledger import KINDS
from benchmarks.config import Precision
from benchmarks.distributed import alone
from benchmarks.forecast.dry_run import Hollow
from benchmarks.forecast.live_bytes import Live
from benchmarks.forecast.meta_model import Model, Needs
from benchmarks.streams import Streams

#: Optimizer steps counted: enough for the mean of a random truncation, a few rounds of DDPO.
STEPS = 24
GIB = 2**30
#: Peak 16-bit FLOP/s with 32-bit sums and no sparsity, from the makers' data sheets.
GPUS = {"A100 80 GB": 312e12, "H100 SXM": 989e12, "RTX 4090": 165e12, "RTX 3090": 71e12}
UTILISATION = 0.4
#: Plans may fill this share of the free memory.
FILL = 0.9
#: arXiv 2310.03739, page 5, as quoted by others (not read in the paper itself).
LADDER = "about 1 TB for full backpropagation, about 500 GB with LoRA, 15 GB with checkpointing"


class Shapes(Streams):
    """Draws numbers that decide something, and only the shapes of noise."""

    def normal(self, purpose: str, step: int, indices: Any, shape: Sequence[int]) -> Tensor:
        if math.prod(shape) == 1:
            return super().normal(purpose, step, indices, shape)
        return torch.zeros(len(list(indices)), *shape)


class Constant(Reward):
    """Stands for any reward."""

    unit, reference = "", ""

    def __init__(self, device: Any, differentiable: bool = True) -> None:
        self.differentiable = differentiable  # type: ignore[misc]

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.mean((1, 2, 3))


def _started(name: str, config: Any, backbone: LoraSD, streams: Streams) -> Method:
    differentiable = "reward_grad" in registry.methods.get(name).needs
    reward = Constant(backbone.device, differentiable)
    prompts = [f"prompt {i}" for i in range(45)]  # as many as the paper's animals
    context = Context(
        backbone=backbone,
        reward=backbone.ledger.counted(reward),
        prompts=lambda step, count: [prompts[i % 45] for i in range(count)],
        streams=streams,
    )
    return registry.methods.get(name)(config, context)


def counted(
    name: str, config: Any, model: Model, memory: Plan, seed: int = 0
) -> list[dict[str, float]]:
    """What the ledger counts in each of the first ``STEPS`` optimizer steps."""
    backbone = Hollow(model, memory, {})
    method, ledger = _widest(name, config, backbone, Streams(seed)), backbone.ledger
    rows: list[dict[str, float]] = []
    before = dict.fromkeys(KINDS, 0)
    for step in range(STEPS):
        method.step(step)
        now = {kind: ledger.counts[kind] for kind in KINDS}
        rows.append({kind: now[kind] - before[kind] for kind in KINDS})
        before = now
    return rows


def peak(
    name: str,
    config: Any,
    model: Model,
    memory: Plan,
    rows: Sequence[dict[str, float]] | None = None,
    seed: int = 0,
) -> float:
    """Bytes at the peak of the heaviest step, frozen weights not included.

    ``rows`` are those of ``counted``, whose counts of backward passes say which step it is. Of many
    micro-batches only a few are run: from the second on each adds as much as the one before.
    """
    rows = rows or counted(name, config, model, memory, seed)
    heaviest = max(range(len(rows)), key=lambda i: _backward(rows[i]))
    start = max(i for i in range(heaviest + 1) if rows[i]["reward_forward"] or i == 0)

    def run(config: Any) -> Counter[Any]:
        inside = memory == "unet"
        costs = {"unet": model.unet(inside), "decode": model.decode(inside)}
        with _one_thread(), Live() as live:
            backbone = Hollow(model, memory, costs)
            method = _started(name, config, backbone, Shapes(seed))
            for step in range(start, heaviest + 1):
                method.step(step)
        return live.peaks

    (many, more), (few, fewer), *_ = _shares(config) + [(1, config)] * 2
    high = run(fewer)
    if few == 1:
        return max(high.values())
    low, onwards = run(more), (1 - 1 / few) / (1 / few - 1 / many)
    return max(high[k] + onwards * (high[k] - low[k]) for k in high)


def _shares(config: Any) -> list[tuple[int, Any]]:
    """Divisors of the numbers of samples that leave two micro-batches or more, largest first."""
    names = [name for name in ("batch_size", "samples_per_round") if hasattr(config, name)]
    if not names or not hasattr(config, "micro_batch"):
        return []
    counts = {name: getattr(config, name) for name in names}
    update = counts[names[0]] // (1 if "batch_size" in counts else config.updates_per_round)
    unit = math.lcm(config.micro_batch, getattr(config, "samples_per_prompt", 1))
    common = math.gcd(*counts.values(), update // unit if update % unit == 0 else 1)
    return [
        (n, dataclasses.replace(config, **{name: count // n for name, count in counts.items()}))
        for n in range(update // (2 * unit), 0, -1)
        if common % n == 0
    ]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tensors here are so small that several threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _widest(name: str, config: Any, backbone: LoraSD, streams: Streams) -> Method:
    """With the largest micro-batch the method takes: it changes no counts and saves time."""
    if hasattr(config, "micro_batch"):
        for micro in [2**i for i in range(12, 0, -1)]:
            with suppress(UserError):
                wide = dataclasses.replace(config, micro_batch=micro)
                return _started(name, wide, backbone, streams)
    return _started(name, config, backbone, streams)


def _backward(row: dict[str, float]) -> float:
    return row["unet_backward"] + row["unet_backward_first"]


@functools.cache  # cells that differ in their seed alone need the same
def _needed(
    name: str, config: Any, backbone: str, precision: Precision, rank: int, memory: Plan
) -> float:
    model, rows = _trial(name, config, backbone, precision, rank)
    return peak(name, config, model, memory, rows)


@functools.cache
def _trial(
    name: str, config: Any, backbone: str, precision: Precision, rank: int
) -> tuple[Model, list[dict[str, float]]]:
    model = _model(backbone, precision, rank)
    return model, counted(name, config, model, "store")


@functools.cache  # what its passes need is measured once, for all methods
def _model(backbone: str, precision: Precision, rank: int) -> Model:
    return Model(backbone, precision, rank)


def choose(
    name: str,
    config: Any,
    backbone: str,
    precision: Precision,
    device: torch.device,
    rank: int = 4,
) -> Plan:
    """The fastest activation plan that fits the device; the leanest if none does.

    Where that cannot be planned (a hub id's shape is not known beforehand; a method may fail on
    hollow modules) each sampling step is recomputed.
    """
    free = FILL * available(device)
    try:
        with alone():
            if device.type == "cpu":
                free -= _model(backbone, precision, rank).packed_bytes
            fits = (m for m in PLANS if _needed(name, config, backbone, precision, rank, m) <= free)
            return next(fits, PLANS[-1])
    except Exception:  # noqa: BLE001 - what breaks a trial step need not break a real one
        return "step"


def plan(name: str, config: Any, model: Model, budget: Budget) -> dict[str, Any]:
    """All that can be said of one method before it runs; FLOPs and counts per optimizer step."""
    prices = model.prices
    result: dict[str, Any] = {"trainable_parameters": model.trainable, "plans": {}}
    for memory in PLANS:
        rows = counted(name, config, model, memory)
        mean = {kind: sum(row[kind] for row in rows) / len(rows) for kind in KINDS}
        parts = {kind: mean[kind] * prices[kind] for kind in KINDS if mean[kind] * prices[kind]}
        flops = sum(parts.values())
        result |= {
            "nfe_per_step": mean["unet_forward"],
            "reward_queries_per_step": mean["reward_forward"],
            "reward_gradients_per_step": mean["reward_backward"],
            "images_per_step": mean["decode_forward"],
        }
        per_step = {
            "flops": flops,
            "queries": mean["reward_forward"],
            "nfe": mean["unet_forward"],
            "steps": 1.0,
        }
        result["plans"][memory] = {
            "flops_per_step": flops,
            "flops_by_part": parts,
            "peak_bytes": model.frozen_bytes + peak(name, config, model, memory, rows),
        }
        if budget.kind in per_step:  # seconds depend on the device
            steps = int(budget.amount / per_step[budget.kind])
            result["plans"][memory] |= {
                "steps_in_budget": steps,
                "reward_queries_in_budget": steps * mean["reward_forward"],
                "hours": {
                    gpu: steps * flops / (speed * UTILISATION) / 3600 for gpu, speed in GPUS.items()
                },
            }
    return result


def ladder(model: Model, samples: int = 2, steps: int = 50) -> dict[str, float]:
    """The paper's comparison, counted for one guided prediction with plain attention.

    16 bits, guidance in one batch of two, attention probabilities kept; activations of the U-Net
    alone, in bytes, and the FLOPs of a guided forward pass. A tensor is alive until its last use,
    so that a backward pass drops attention probabilities as it goes. Attention's products count
    once: counted twice, SD v1.5 would have 1.86 TFLOP.
    """
    needs: Needs = "input"
    stored, blocks = (model.unet(i, False, [needs])(samples, needs) for i in (False, True))
    return {
        "stored_per_sampling_step": stored.kept,
        "stored_all": steps * stored.kept,
        "recomputed_per_sampling_step": stored.kept + max(stored.forward, stored.backward),
        "recomputed_inside": blocks.kept + max(blocks.forward, blocks.backward),
        "flops_guided_forward": 2 * model.prices["unet_forward"],
    }


def rungs(backbone: str) -> dict[str, float]:
    """The paper's ladder from full backpropagation to one GPU: bytes to train on one picture.

    ``ladder``'s activations, the frozen weights in 16 bits, and of each trained weight 16 bytes:
    itself, its gradient and two moments, in 32 bits.
    """
    found = {}
    for name, rank in (("all weights", 0), ("LoRA", 4)):
        model = Model(backbone, "fp16", rank)
        rest, steps = model.frozen_bytes + 16 * model.trainable, ladder(model)
        found[f"{name}, every sampling step stored"] = rest + steps["stored_all"]
        found[f"{name}, sampling steps recomputed"] = rest + steps["recomputed_per_sampling_step"]
        found[f"{name}, blocks recomputed too"] = rest + steps["recomputed_inside"]
    return found
