"""The most bytes a method's steps hold at once, and which checkpointing fits a device."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from benchmarks.api import Keep, Sampling, UserError
from benchmarks.backbone.checkpointing import KEEPS, available
from benchmarks.compute.ledger import Pass, passes
from benchmarks.config import Precision
from benchmarks.distributed import alone
from benchmarks.forecast.dry_run import DryRun, ShapeOnlyStreams, counted, started
from benchmarks.forecast.live_bytes import Live
from benchmarks.forecast.meta_model import MetaModel

#: So much of the free memory may be filled.
FILL = 0.9


def heaviest(rows: Sequence[Mapping[Pass, float]]) -> range:
    """The step of ``counted`` with the most backward passes, and those since its samples' draw."""
    last = max(range(len(rows)), key=lambda i: passes(rows[i], "denoiser", "backward"))
    queries = [passes(row, "reward", "forward") for row in rows]
    first = max(i for i in range(last + 1) if queries[i] or i == 0)
    return range(first, last + 1)


def peak(
    name: str, config: Any, model: MetaModel, keep: Keep, steps: range, seed: int = 0
) -> float:
    """Bytes at the peak of these optimizer steps, frozen weights not included.

    Of many micro-batches only a few are run. From the second on each adds to the bytes alive after
    an operator as much as the one before, if anything (the latents of a round, say). So from two
    micro-batches on, the peak after each operator is a line over the number of samples: two points
    of it give the whole, and the largest over all operators is the peak.
    """
    fewer = smaller(config)
    if not fewer:
        return max(_peaks(name, config, model, keep, steps, seed).values())
    high = _peaks(name, fewer[-1], model, keep, steps, seed)
    low = _peaks(name, fewer[0], model, keep, steps, seed)
    least, most, whole = fewer[0].update_size, fewer[-1].update_size, config.update_size
    ahead = (whole - most) / (most - least)
    return max(high[k] + ahead * (high[k] - low[k]) for k in high)


def smaller(config: Any) -> list[Sampling]:
    """Two configurations with fewer samples per optimizer step, in two micro-batches or more.

    None if there are no two that are smaller than ``config``.
    """
    if not isinstance(config, Sampling):
        return []
    found: list[Sampling] = []
    size, micro_batch = config.update_size, config.micro_batch
    for update_size in range(2 * micro_batch, size, micro_batch):
        with suppress(UserError):
            if size % update_size == 0:
                found.append(config.resized(update_size))
        if len(found) == 2:
            return found
    return []


def _peaks(
    name: str, config: Any, model: MetaModel, keep: Keep, steps: range, seed: int
) -> Counter[Any]:
    """The most bytes alive after each operator."""
    costs = model.costs(by_block=keep == "blocks")
    with _one_thread(), Live() as live:
        backbone = DryRun(model, keep, costs)
        method = started(name, config, backbone, ShapeOnlyStreams(seed))
        for step in steps:
            method.step(step)
    return live.peaks


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tensors here are so small that several threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache  # cells that differ in their seed alone need the same
def _needed(
    name: str, config: Any, backbone: str, precision: Precision, rank: int, keep: Keep
) -> float:
    model = _model(backbone, precision, rank)
    steps = heaviest(_rows(name, config, backbone, precision, rank))
    return peak(name, config, model, keep, steps)


@functools.cache
def _rows(
    name: str, config: Any, backbone: str, precision: Precision, rank: int
) -> list[dict[Pass, float]]:
    return counted(name, config, _model(backbone, precision, rank), "all")


@functools.cache  # what its passes need is measured once, for all methods
def _model(backbone: str, precision: Precision, rank: int) -> MetaModel:
    return MetaModel(backbone, precision, rank)


def choose(
    name: str,
    config: Any,
    backbone: str,
    precision: Precision,
    device: torch.device,
    rank: int = 4,
) -> Keep:
    """Keep as much for the backward pass as fits the device; the least if nothing does.

    Where that cannot be planned (a hub id's shape is not known beforehand; a method may fail on
    modules that compute nothing) the latents are kept.
    """
    free = FILL * available(device)
    try:
        with alone():
            if device.type == "cpu":
                free -= _model(backbone, precision, rank).packed_bytes
            fits = (k for k in KEEPS if _needed(name, config, backbone, precision, rank, k) <= free)
            return next(fits, KEEPS[-1])
    except Exception:  # noqa: BLE001 - what breaks a trial step need not break a real one
        return "latents"
