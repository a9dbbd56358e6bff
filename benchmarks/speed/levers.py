"""What each lever gains: the step as it is beside the step without the lever, in turns.

Both are the same mathematics; ``tests/benchmarks/test_speed.py`` holds that their results agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.backbone import lora_sd
from benchmarks.backbone.lora_sd import LoraSD
from benchmarks.ledger import Ledger
from benchmarks.speed.clock import in_turns, peak, ratio
from benchmarks.speed.models import apart, embedded
from benchmarks.speed.ours import Ours

Run = Callable[[], None]
ROUNDS = 7


def measure(quick: bool = False) -> dict[str, Any]:
    """By lever: how many times longer the step takes without it, and the peaks with and without."""
    batch, steps, rounds = (4, 4, 2) if quick else (8, 20, ROUNDS)
    found = {}
    for name, (fast, plain) in pairs(batch, steps).items():
        seconds = in_turns({"with": fast, "without": plain}, rounds)
        found[name] = {
            "seconds": seconds,
            "gain": ratio(seconds, "without", "with"),
            "peak_bytes": {"with": peak(fast), "without": peak(plain)},
        }
    return {"batch": batch, "steps": steps, "levers": found}


def pairs(batch: int, steps: int) -> dict[str, tuple[Run, Run]]:
    """By lever: a step with it and one without."""
    pipeline = embedded()
    ours, backbone = _ours(apart(pipeline), batch, steps)
    rows, rows_backbone = _ours(pipeline, batch, steps)
    for module in (rows_backbone.unet, rows_backbone.vae):
        module.to(memory_format=torch.contiguous_format)
    full, last = ours.alignprop(steps, "store"), ours.alignprop(1, "store")
    return {
        "prompts encoded once (AlignProp, K=1)": (last, forgetting(backbone, last)),
        "guidance in one batch (AlignProp, K=1)": (last, inside(two_passes, backbone, last)),
        "no autograd before the truncation (AlignProp, K=1)": (
            last,
            inside(gradient_everywhere, backbone, last),
        ),
        "channels_last (AlignProp, K=1)": (last, rows.alignprop(1, "store")),
        "plan store instead of step (AlignProp, full)": (full, ours.alignprop(steps, "step")),
        "no graph in the first forward pass of plan step (AlignProp, full)": (
            ours.alignprop(steps, "step"),
            inside(checkpointed, backbone, ours.alignprop(steps, "step")),
        ),
        "plan step instead of unet (AlignProp, full)": (
            ours.alignprop(steps, "step"),
            ours.alignprop(steps, "unet"),
        ),
        "forward passes of sampling kept (DDPO)": (ours.ddpo("store"), ours.ddpo("step")),
        "LoRA merged before the truncation: not done, at most (AlignProp, K=1)": (
            inside(unadapted_sampling, backbone, last),
            last,
        ),
    }


def _ours(pipeline: Any, batch: int, steps: int) -> tuple[Ours, LoraSD]:
    backbone = LoraSD(pipeline, Ledger())
    return Ours(backbone, batch=batch, steps=steps, guidance=2.5), backbone


def forgetting(backbone: LoraSD, run: Run) -> Run:
    """With prompts encoded anew in every step."""

    def step() -> None:
        backbone._texts.clear()
        run()

    return step


def inside(way: Callable[[LoraSD], AbstractContextManager[Any]], backbone: LoraSD, run: Run) -> Run:
    """``run`` while the backbone works another way."""

    def step() -> None:
        with way(backbone):
            run()

    return step


@contextmanager
def two_passes(backbone: LoraSD) -> Iterator[None]:
    """Guidance as two evaluations of the U-Net."""

    def predict(latents: Tensor, timestep: int, text: Tensor, guidance: float) -> Tensor:
        timesteps = torch.tensor(timestep, device=backbone.device).expand(len(latents))
        without = backbone._unet(latents, timesteps, backbone.encode([""]).expand_as(text))
        return without + guidance * (backbone._unet(latents, timesteps, text) - without)

    with patch.object(backbone, "_predict", predict):
        yield


@contextmanager
def gradient_everywhere(backbone: LoraSD) -> Iterator[None]:
    """Every prediction builds a graph, which is dropped where it must carry no gradient."""
    unet = backbone._unet

    def with_graph(*arguments: Any) -> Tensor:
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            output = unet(*arguments)
        return output if wanted else output.detach()

    with patch.object(backbone, "_unet", with_graph):
        yield


@contextmanager
def checkpointed(_: LoraSD) -> Iterator[None]:
    """Recomputation by torch's ``checkpoint``."""

    def again(
        function: Callable[[Tensor], Tensor], given: Tensor, within: Callable[[], Any]
    ) -> Any:
        return checkpoint(
            function,
            given,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), within()),
        )

    with patch.object(lora_sd, "repeated", again):
        yield


@contextmanager
def unadapted_sampling(backbone: LoraSD) -> Iterator[None]:
    """Predictions without gradient leave the LoRA matrices out: what merging them could save."""
    unet = backbone._unet

    def base(*arguments: Any) -> Tensor:
        with backbone._base(alone=not torch.is_grad_enabled()):
            return unet(*arguments)

    with patch.object(backbone, "_unet", base):
        yield
