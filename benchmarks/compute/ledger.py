"""The ledger counts every pass through the denoiser, the decoder and the reward, per sample.

The passes of a network that a method trains for itself, such as a value function, are counted too.

It listens through hooks on the modules themselves, so a method can neither forget nor bypass it.
Prices (FLOPs per sample and pass) are measured with ``torch.utils.flop_counter`` on the real
modules; a multiply-add counts two. Attention is priced as its four plain matrix products and their
derivatives, whatever kernel computes it: fused kernels differ between devices in what they repeat,
and the counter takes the one for CPUs to be free. A pass of the base model has the price of one
with LoRA matrices, which add little. In the same way prices are those of plain passes where the
backbone does with less (``benchmarks.backbone.kernels``): an upsampling convolution as one
transposed convolution, and keys and values of the text that are kept. So FLOPs are the same on
every device, and what kernels save shows in seconds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.api import Reward, RewardFunction
from benchmarks.compute.budget import BUDGETS
from benchmarks.compute.flops import FlopCounter
from benchmarks.distributed import exchange

Part = Literal["denoiser", "decoder", "reward", "method"]  # the last: a network of its own
Direction = Literal["forward", "recompute", "backward", "block_recompute"]


@dataclass(frozen=True)
class Pass:
    """One kind of pass of one sample through a part of the model.

    ``recompute`` repeats a whole forward pass; ``block_recompute`` is what a backward pass repeats
    block by block. With ``weights_only`` the backward pass ends at the denoiser's own weights: its
    input needs no gradient.
    """

    part: Part
    direction: Direction
    weights_only: bool = False

    @property
    def name(self) -> str:
        """For files and people."""
        return f"{self.part}_{self.direction}{'_weights_only' if self.weights_only else ''}"


#: All that is counted; each kind has its price in FLOPs per sample in ``Ledger.prices``.
KINDS = (
    Pass("denoiser", "forward"),
    Pass("denoiser", "recompute"),
    Pass("denoiser", "backward"),
    Pass("denoiser", "backward", weights_only=True),
    Pass("denoiser", "block_recompute"),
    Pass("denoiser", "block_recompute", weights_only=True),
    Pass("decoder", "forward"),
    Pass("decoder", "backward"),
    Pass("decoder", "block_recompute"),
    Pass("reward", "forward"),
    Pass("reward", "backward"),
    Pass("method", "forward"),
    Pass("method", "backward"),
)


def passes(counts: Mapping[Pass, float], part: Part, *directions: Direction) -> float:
    """How many of ``counts`` are passes through this part in these directions."""
    return sum(counts[kind] for kind in KINDS if kind.part == part and kind.direction in directions)


class Ledger:
    """Counts of one cell. Paused while the harness evaluates or measures prices."""

    def __init__(self) -> None:
        self.counts: Counter[Pass] = Counter()
        self.prices: dict[Pass, float] = dict.fromkeys(KINDS, 0.0)
        self.block_recompute: frozenset[Part] = frozenset()  # whose backward passes repeat blocks
        self.skipped = 0  # rewards, gradients and updates that are not finite
        self.optimizer_steps = 0
        self.seconds = 0.0
        self._paused = False
        self._recomputing = False

    @property
    def flops(self) -> float:
        """FLOPs of all counted passes."""
        return sum(self.prices[kind] * self.counts[kind] for kind in KINDS)

    def totals(self) -> dict[str, float]:
        """The cumulative counters that every record carries."""
        counts = self.counts
        return {
            "flops": self.flops,
            "nfe": passes(counts, "denoiser", "forward"),
            "denoiser_backward": passes(counts, "denoiser", "backward"),
            "denoiser_recompute": passes(counts, "denoiser", "recompute", "block_recompute"),
            "images": passes(counts, "decoder", "forward"),
            "reward_queries": passes(counts, "reward", "forward"),
            "reward_gradients": passes(counts, "reward", "backward"),
            "optimizer_steps": self.optimizer_steps,
            "skipped": self.skipped,
            "seconds": self.seconds,
        }

    def spent(self, kind: str) -> float:
        """How much of a budget of this kind is used."""
        return self.totals()[BUDGETS[kind]]

    def state_dict(self) -> dict[str, Any]:
        """Counts, for resuming; prices are measured anew."""
        return {
            "counts": {kind.name: self.counts[kind] for kind in KINDS},
            "skipped": self.skipped,
            "optimizer_steps": self.optimizer_steps,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.counts = Counter({kind: state["counts"][kind.name] for kind in KINDS})
        self.skipped, self.seconds = state["skipped"], state["seconds"]
        self.optimizer_steps = state["optimizer_steps"]

    def watch(self, part: Part, module: nn.Module) -> None:
        """Count every forward and backward pass of ``module``, whose first argument has B rows."""

        def after_forward(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
            self._passed(part, args[0], value)

        module.register_forward_hook(after_forward)

    def _passed(self, part: Part, given: Tensor, value: Tensor) -> None:
        if self._paused:
            return
        samples = len(given)
        self.counts[Pass(part, "recompute" if self._recomputing else "forward")] += samples
        if value.requires_grad:
            weights_only = part == "denoiser" and not given.requires_grad

            def backward(_: Tensor) -> None:
                self.counts[Pass(part, "backward", weights_only)] += samples
                if part in self.block_recompute:
                    self.counts[Pass(part, "block_recompute", weights_only)] += samples

            value.register_hook(backward)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Go off the clock: nothing is counted until the end."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Count forward passes as repetitions for activation checkpointing."""
        self._recomputing = True
        try:
            yield
        finally:
            self._recomputing = False

    @property
    def in_recomputation(self) -> bool:
        """Whether a forward pass now is a repetition."""
        return self._recomputing

    @contextmanager
    def clock(self, device: torch.device) -> Iterator[None]:
        """Add synchronised device seconds."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.seconds += time.perf_counter() - start

    @contextmanager
    def across_processes(self) -> Iterator[None]:
        """Let every process count its own work; afterwards all know the work of all."""
        before = self.counts, self.skipped, self.seconds
        self.counts, self.skipped, self.seconds = Counter(), 0, 0.0
        yield
        everyone = exchange((self.counts, self.skipped, self.seconds))
        self.counts, self.skipped, self.seconds = before
        for counts, skipped, seconds in everyone:
            self.counts = self.counts + counts
            self.skipped += skipped
            self.seconds += seconds

    def price(
        self,
        part: Part,
        call: Callable[[], Tensor],
        *,
        weights_only: bool = False,
        by_block: bool = False,
    ) -> None:
        """Measure one pass of one sample and its backward, off the clock.

        With ``by_block`` the module repeats its blocks: what the backward costs more than the price
        known is their recomputation.
        """
        eager = torch.compiler.set_stance("force_eager")  # compiled operators are not counted
        with self.paused(), eager, sdpa_kernel(SDPBackend.MATH), FlopCounter() as counter:
            value = call()
            forward = counter.get_total_flops()
            if value.requires_grad:
                value.sum().backward()
        there_and_back = counter.get_total_flops()
        back = Pass(part, "backward", weights_only)
        found = {Pass(part, "forward"): forward, Pass(part, "recompute"): forward}
        if by_block:
            extra = there_and_back - forward - self.prices[back]
            found[Pass(part, "block_recompute", weights_only)] = extra
        else:
            found[back] = there_and_back - forward
        self.prices |= {kind: price for kind, price in found.items() if kind in self.prices}

    def counted(self, reward: Reward) -> RewardFunction:
        """The reward as methods see it."""

        def call(images: Tensor, prompts: Sequence[str]) -> Tensor:
            if reward.differentiable:
                values = reward(images, prompts)
            else:
                with torch.no_grad():
                    values = reward(images.detach(), prompts)
            self._passed("reward", images, values)
            return values

        return call
