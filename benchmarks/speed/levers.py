"""What each lever gains: the step as it is beside the step without the lever, in turns.

Both are the same mathematics; ``tests/benchmarks/speed`` holds that their results agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.api import Condition
from benchmarks.backbone import base, kernels
from benchmarks.backbone.base import BaseBackbone
from benchmarks.backbone.kernels import attention, packed
from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import Ledger
from benchmarks.experiments.cells import has_compiler
from benchmarks.speed.clock import in_turns, native_bf16, peak, ratio
from benchmarks.speed.models import apart, made
from benchmarks.speed.ours import Ours

Run = Callable[[], None]
Way = AbstractContextManager[Any]  # inside it the backbone works another way
ROUNDS = 7


def measure(quick: bool = False) -> dict[str, Any]:
    """By lever: how many times longer the step takes without it, and the peaks with and without."""
    batch, steps, rounds = (4, 4, 2) if quick else (8, 20, ROUNDS)
    levers, found = pairs(batch, steps), {}
    if not quick:
        levers |= large()
        if native_bf16():
            levers |= half(batch, steps)
        if has_compiler():
            levers |= compiled(batch, steps)
    for name, (fast, plain) in levers.items():
        seconds = in_turns({"with": fast, "without": plain}, rounds)
        found[name] = {
            "seconds": seconds,
            "gain": ratio(seconds, "without", "with"),
            "peak_bytes": None
            if "torch.compile" in name
            else {"with": peak(fast), "without": peak(plain)},
        }
    return {"batch": batch, "steps": steps, "levers": found}


def pairs(batch: int, steps: int) -> dict[str, tuple[Run, Run]]:
    """By lever: a step with it and one without."""
    pipeline = made("embedded")
    ours, backbone = _ours(apart(pipeline), batch, steps)
    rows, rows_backbone = _ours(pipeline, batch, steps)
    for module in (rows_backbone.denoiser, rows_backbone.autoencoder):
        module.to(memory_format=torch.contiguous_format)
    full, last = ours.alignprop(steps, "all"), ours.alignprop(1, "all")
    unpacked = inside(every_time, backbone, full)
    return {
        "prompts encoded once (AlignProp, K=1)": (last, forgetting(backbone, last)),
        "guidance in one batch (AlignProp, K=1)": beside(two_passes, backbone, last),
        "no autograd before the truncation (AlignProp, K=1)": beside(
            gradient_everywhere, backbone, last
        ),
        "channels_last, weights not packed (AlignProp, K=1)": (
            inside(every_time, backbone, last),
            inside(every_time, rows_backbone, rows.alignprop(1, "all")),
        ),
        "all kept instead of latents (AlignProp, full)": (full, ours.alignprop(steps, "latents")),
        "no graph in the first of two forward passes (AlignProp, full)": (
            ours.alignprop(steps, "latents"),
            inside(checkpointed, backbone, ours.alignprop(steps, "latents")),
        ),
        "latents kept instead of blocks (AlignProp, full)": (
            ours.alignprop(steps, "latents"),
            ours.alignprop(steps, "blocks"),
        ),
        "forward passes of sampling kept (DDPO)": (ours.ddpo("all"), ours.ddpo("latents")),
        "LoRA product added in place (AlignProp, full)": beside(peft_layers, backbone, full),
        "keys and values of the text kept (AlignProp, K=1)": beside(forgotten_text, backbone, last),
        "upsampling and convolution as one (AlignProp, full)": beside(
            two_step_upsampling, backbone, full
        ),
        "frozen convolutions keep no input, weights not packed (AlignProp, full)": beside(
            plain_convolutions, backbone, unpacked
        ),
        "frozen weights packed once (AlignProp, full)": (full, unpacked),
        "residual blocks without division (AlignProp, full)": beside(
            dividing_blocks, backbone, full
        ),
        "LoRA merged before the truncation: not done, at most (AlignProp, K=1)": (
            inside(unadapted_sampling, backbone, last),
            last,
        ),
    }


def half(batch: int, steps: int) -> dict[str, tuple[Run, Run]]:
    """Those that matter in bf16."""
    ours, backbone = _ours(made("embedded", torch.bfloat16), batch, steps)
    full, last = ours.alignprop(steps, "all"), ours.alignprop(1, "all")
    return {
        "frozen weights packed once (bf16; AlignProp, K=1)": beside(every_time, backbone, last),
        "queries, keys and values together (bf16; AlignProp, K=1)": beside(
            one_by_one, backbone, last
        ),
        "no autocast where all types fit (bf16; AlignProp, K=1)": beside(autocast, backbone, last),
        "group normalisation in single precision (bf16; AlignProp, full)": beside(
            half_normalisation, backbone, full
        ),
        "short attention in single precision (bf16; AlignProp, full)": beside(
            half_attention, backbone, full
        ),
    }


def large() -> dict[str, tuple[Run, Run]]:
    """What matters most where a model has more channels than pixels."""
    ours, backbone = _ours(made("sd15"), 1, 4)
    last = ours.alignprop(1, "all")
    return {
        "frozen weights packed once (SD v1.5's shape; AlignProp, K=1)": beside(
            every_time, backbone, last
        )
    }


def compiled(batch: int, steps: int) -> dict[str, tuple[Run, Run]]:
    """``--compile``, which needs a C++ compiler."""
    pipeline = made("embedded")
    ours, _ = _ours(apart(pipeline), batch, steps)
    faster, _ = _ours(pipeline, batch, steps, compile=True)
    return {
        f"torch.compile: option --compile (AlignProp, {name})": (
            faster.alignprop(k, "all"),
            ours.alignprop(k, "all"),
        )
        for name, k in (("full", steps), ("K=1", 1))
    }


def _ours(pipeline: Any, batch: int, steps: int, **options: Any) -> tuple[Ours, BaseBackbone]:
    backbone = StableDiffusion(pipeline, Ledger(), **options)
    return Ours(backbone, batch=batch, steps=steps, guidance=2.5), backbone


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object or class another attribute for a while."""
    own = vars(owner)
    there, before = name in own, own.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if there:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def forgetting(backbone: BaseBackbone, run: Run) -> Run:
    """With prompts encoded anew in every step."""

    def step() -> None:
        backbone._conditions.clear()
        run()

    return step


def beside(way: Callable[[BaseBackbone], Way], backbone: BaseBackbone, run: Run) -> tuple[Run, Run]:
    """``run`` as it is, and while the backbone works another way."""
    return run, inside(way, backbone, run)


def inside(way: Callable[[BaseBackbone], Way], backbone: BaseBackbone, run: Run) -> Run:
    """``run`` while the backbone works another way."""

    def step() -> None:
        with way(backbone):
            run()

    return step


@contextmanager
def two_passes(backbone: BaseBackbone) -> Iterator[None]:
    """Guidance as two evaluations of the denoiser."""

    def guided(latents: Tensor, timestep: int, text: Condition, guidance: float) -> Tensor:
        timesteps = torch.tensor(timestep, device=backbone.device).expand(len(latents))
        empty = backbone.encode([""] * len(latents))
        without = backbone._denoised(latents, timesteps, empty)
        return without + guidance * (backbone._denoised(latents, timesteps, text) - without)

    with replaced(backbone, "_guided", guided):
        yield


@contextmanager
def gradient_everywhere(backbone: BaseBackbone) -> Iterator[None]:
    """Every prediction builds a graph, which is dropped where it must carry no gradient."""
    denoised = backbone._denoised

    def with_graph(*arguments: Any) -> Tensor:
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            output = denoised(*arguments)
        return output if wanted else output.detach()

    with replaced(backbone, "_denoised", with_graph):
        yield


@contextmanager
def checkpointed(_: BaseBackbone) -> Iterator[None]:
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

    with replaced(base, "repeated", again):
        yield


@contextmanager
def unadapted_sampling(backbone: BaseBackbone) -> Iterator[None]:
    """Predictions without gradient leave the LoRA matrices out: what merging them could save."""
    denoised = backbone._denoised

    def unadapted(*arguments: Any) -> Tensor:
        with backbone.adapting(torch.is_grad_enabled()):
            return denoised(*arguments)

    with replaced(backbone, "_denoised", unadapted):
        yield


def peft_layers(_: BaseBackbone) -> Way:
    """LoRA as peft computes it."""
    return replaced(kernels.LoraLinear, "forward", PeftLinear.forward)


def plain_convolutions(_: BaseBackbone) -> Way:
    """PyTorch's kernel for all convolutions."""
    return replaced(kernels.Conv2d, "forward", nn.Conv2d.forward)


def every_time(_: BaseBackbone) -> Way:
    """Frozen weights brought into oneDNN's order in every call."""
    return replaced(packed, "AVAILABLE", False)


def dividing_blocks(_: BaseBackbone) -> Way:
    """Residual blocks as diffusers computes them."""
    return replaced(kernels.ResnetBlock, "forward", ResnetBlock2D.forward)


def one_by_one(_: BaseBackbone) -> Way:
    """Queries, keys and values each by their own layer."""
    return replaced(attention, "can_fuse", lambda *_: False)


def autocast(backbone: BaseBackbone) -> Way:
    """Every operator asked for the type of its arguments."""
    half = torch.autocast(backbone.device.type, backbone.dtype)
    return replaced(backbone, "_autocast", lambda: half)


def half_normalisation(_: BaseBackbone) -> Way:
    """Group normalisation by PyTorch's kernel for half precision."""
    return replaced(kernels.GroupNorm, "forward", nn.GroupNorm.forward)


def half_attention(_: BaseBackbone) -> Way:
    """Attention in half precision."""
    return replaced(attention, "SHORT", 0)


def forgotten_text(_: BaseBackbone) -> Way:
    """Keys and values of the text computed in every pass."""
    return replaced(kernels.Attention, "_of_text", kernels.Attention._keys_and_values)


def two_step_upsampling(_: BaseBackbone) -> Way:
    """Pixels doubled, then a convolution."""
    return replaced(kernels.Upsample, "forward", Upsample2D.forward)
