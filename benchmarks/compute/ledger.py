"""The ledger counts every pass through the denoiser, the decoder and the reward, per sample.

It listens through hooks on the modules themselves, so a method can neither forget nor bypass it.
Prices (FLOPs per sample and pass) are measured with ``torch.utils.flop_counter`` on the real
modules; a multiply-add counts two. Attention is priced as its four plain matrix products and their
derivatives, whatever kernel computes it: fused kernels differ between devices in what they repeat,
and the counter takes the one for CPUs to be free. In the same way prices are those of plain passes
where the backbone does with less (``benchmarks.backbone.kernels``): an upsampling convolution as
one transposed convolution, and keys and values of the text that are kept. So FLOPs are the same on
every device, and what kernels save shows in seconds.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.api import Reward, RewardFunction
from benchmarks.compute.budget import BUDGETS
from benchmarks.distributed import exchange

#: What can be counted, with its price in FLOPs per sample in ``Ledger.prices``.
#: ``*_first`` is a backward that stops at the module's own parameters: its input needs no gradient.
#: ``*_recompute`` repeats a whole pass, ``*_inside`` is what a backward repeats block by block.
KINDS = (
    "unet_forward",
    "unet_recompute",
    "unet_backward",
    "unet_backward_first",
    "unet_inside",
    "unet_inside_first",
    "decode_forward",
    "decode_backward",
    "decode_inside",
    "reward_forward",
    "reward_backward",
)


#: Operators that multiply matrices; one of these without a formula would be priced at zero.
DENSE = re.compile(r"(?<!a)mm|mv$|conv(?!ert)|attention|dot|linear(?!\d)|einsum")


class FlopCounter(FlopCounterMode):
    """Counts FLOPs; a matrix product without a formula is an error instead of free."""

    def __init__(self) -> None:
        super().__init__(display=False)
        registry, aten = self.flop_registry, torch.ops.aten
        registry[aten.addmm_] = registry[aten.addmm]

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        if func_packet not in self.flop_registry and DENSE.search(str(func_packet)):
            raise RuntimeError(f"operator {func_packet} has no price: the ledger would miss it")
        return super()._count_flops(func_packet, out, args, kwargs)  # type: ignore[no-untyped-call]


class Ledger:
    """Counts of one cell. Paused while the harness evaluates or measures prices."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.prices: dict[str, float] = dict.fromkeys(KINDS, 0.0)
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
        forward = self.counts["unet_forward"]
        return {
            "flops": self.flops,
            "nfe": forward,
            "unet_backward": self.counts["unet_backward"] + self.counts["unet_backward_first"],
            "unet_recompute": sum(
                self.counts[k] for k in ("unet_recompute", "unet_inside", "unet_inside_first")
            ),
            "images": self.counts["decode_forward"],
            "reward_queries": self.counts["reward_forward"],
            "reward_gradients": self.counts["reward_backward"],
            "optimizer_steps": self.optimizer_steps,
            "skipped": self.counts["skipped"],  # rewards, gradients and updates that are not finite
            "seconds": self.seconds,
        }

    def spent(self, kind: str) -> float:
        """How much of a budget of this kind is used."""
        return self.totals()[BUDGETS[kind]]

    def state_dict(self) -> dict[str, Any]:
        """Counts, for resuming; prices are measured anew."""
        steps, seconds = self.optimizer_steps, self.seconds
        return {"counts": dict(self.counts), "optimizer_steps": steps, "seconds": seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.counts = Counter(state["counts"])
        self.optimizer_steps, self.seconds = state["optimizer_steps"], state["seconds"]

    def watch(self, name: str, module: nn.Module) -> None:
        """Count every forward and backward of ``module`` as ``{name}_forward`` and so on."""

        def after_forward(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
            self._passed(name, args[0], value)

        module.register_forward_hook(after_forward)

    def _passed(self, name: str, given: Tensor, value: Tensor) -> None:
        if self._paused:
            return
        self.counts[f"{name}_{'recompute' if self._recomputing else 'forward'}"] += len(given)
        if value.requires_grad:
            suffix = "_first" if name == "unet" and not given.requires_grad else ""

            def backward(_: Tensor) -> None:
                self.counts[f"{name}_backward{suffix}"] += len(given)
                if self.prices.get(f"{name}_inside{suffix}"):
                    self.counts[f"{name}_inside{suffix}"] += len(given)

            value.register_hook(backward)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Off the clock: nothing inside is counted."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Forward passes inside are repetitions for activation checkpointing."""
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
    def together(self) -> Iterator[None]:
        """Inside, every process counts its own work; afterwards all know the work of all."""
        counts, seconds = self.counts, self.seconds
        self.counts, self.seconds = Counter(), 0.0
        yield
        for new, spent in exchange((self.counts, self.seconds)):
            counts, seconds = counts + new, seconds + spent
        self.counts, self.seconds = counts, seconds

    def price(
        self, name: str, call: Callable[[], Tensor], *, first: bool = False, inside: bool = False
    ) -> None:
        """Measure one pass of one sample and its backward, off the clock.

        With ``inside``, what the backward costs more than the price known is recomputation.
        """
        eager = torch.compiler.set_stance("force_eager")  # compiled operators are not counted
        with self.paused(), eager, sdpa_kernel(SDPBackend.MATH), FlopCounter() as counter:
            value = call()
            forward = counter.get_total_flops()
            if value.requires_grad:
                value.sum().backward()
        backward, suffix = counter.get_total_flops() - forward, "_first" if first else ""
        extra = backward - self.prices[f"{name}_backward{suffix}"] if inside else 0.0
        prices = {"forward": forward, f"backward{suffix}": backward - extra}
        self.prices |= {f"{name}_{kind}": price for kind, price in prices.items()}
        if f"{name}_inside{suffix}" in self.prices:
            self.prices[f"{name}_inside{suffix}"] = extra
        if f"{name}_recompute" in self.prices:
            self.prices[f"{name}_recompute"] = forward

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
