"""One run on several devices: ``accelerate launch run_benchmark.py ...`` or ``torchrun``.

Every process does the same steps on its share of the samples. Random numbers are named by global
sample index and all that a method keeps is made whole with ``gather``, so states, records and
checkpoints are those of one process, and a run may go on with another number of them. Alone, each
function below gives back what it got.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from benchmarks.api import UserError
from benchmarks.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")
_alone = False


@functools.cache
def start() -> torch.device:
    """Join, once, the other processes, if a launcher started some; the device of this one."""
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    atexit.register(state.destroy_process_group)
    device: torch.device = state.device
    return device


def leave(reason: str) -> NoReturn:
    """End this process at once; the launcher then ends the others, which wait for it in vain."""
    print(reason, file=sys.stderr, flush=True)
    os._exit(1)


@contextmanager
def alone() -> Iterator[None]:
    """Let this process work by itself and wait for no other."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def processes() -> int:
    """How many processes share this run."""
    if _alone:
        return 1
    distributed = torch.distributed
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1


def process() -> int:
    """The number of this process, from 0; the first one writes all files."""
    return torch.distributed.get_rank() if processes() > 1 else 0


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This process's slice of ``items``; slices differ in length by one at most."""
    count, n = processes(), len(items)
    return items[process() * n // count : (process() + 1) * n // count]


def micro_batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """This process's slice of ``items`` in micro-batches of at most ``size``."""
    if size < 1:
        raise UserError(f"micro_batch is {size}; it must be at least 1")
    mine = share(items)
    return [mine[i : i + size] for i in range(0, len(mine), size)]


def gather(tensors: Sequence[Tensor]) -> Tensor:
    """The rows of all processes' ``tensors``, in the order of ``share``, on the CPU."""
    found = [tensor.detach().cpu() for tensor in tensors]
    return torch.cat([tensor for others in exchange(found) for tensor in others])


def total(*values: float) -> tuple[float, ...]:
    """The sum over all processes of each value."""
    return tuple(sum(column) for column in zip(*exchange(values), strict=True))


def reduce_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Sum the gradients over all processes; one that no process has stays None."""
    if processes() == 1:
        return
    zero = torch.zeros_like
    there = torch.tensor([float(p.grad is not None) for p in parameters])
    flat = [p.grad.flatten() if p.grad is not None else zero(p).flatten() for p in parameters]
    everything = torch.cat([there.to(flat[0]), *flat])
    torch.distributed.all_reduce(everything)
    there, *summed = everything.split([len(parameters), *(len(f) for f in flat)])
    for parameter, found, gradient in zip(parameters, there.tolist(), summed, strict=True):
        parameter.grad = gradient.view_as(parameter).clone() if found else None


def from_first(call: Callable[[], Item]) -> Item:
    """What ``call`` gives in the first process, in all of them; what it raises likewise."""
    if processes() == 1:
        return call()
    box: list[Any] = [None, None]
    if process() == 0:
        try:
            box[0] = call()
        except Exception as error:  # noqa: BLE001 - raised below, everywhere
            box[1] = error
    torch.distributed.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


def exchange(mine: Item) -> list[Item]:
    """Every process's value, first process first."""
    if processes() == 1:
        return [mine]
    everyone: list[Any] = [None] * processes()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone
