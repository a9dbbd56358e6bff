"""What every method keeps, shown by running it.

Each check takes the name of a registered method, runs it for a few small steps on the embedded
model and raises ``Broken`` with what to change. The tests run the same checks on our own methods.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import debug_launcher
from torch import Tensor

from benchmarks import distributed, registry
from benchmarks.api import (
    Context,
    EvaluationSettings,
    Method,
    Reward,
    Sampling,
    Scale,
    Task,
    UserError,
)
from benchmarks.backbone import load
from benchmarks.backbone.base import BaseBackbone
from benchmarks.cli import meanings
from benchmarks.compute.budget import Budget
from benchmarks.compute.ledger import KINDS, Ledger, Pass, passes
from benchmarks.config import load_preset, load_task, method_defaults, override
from benchmarks.harness.evaluate import pictures
from benchmarks.harness.guard import Guard
from benchmarks.harness.loop import Harness
from benchmarks.harness.spec import Spec
from benchmarks.records import checkpoint
from benchmarks.streams import Streams

#: What the checks draw at most: samples, in so many sampling steps.
SAMPLES, SAMPLING_STEPS = 4, 4

BACKBONE, PROMPTS = "emoji", "animals-on-blue"
#: One picture of one prompt each, for checks that go through the harness.
TASK = Task(
    name="contract",
    train=("cat",),
    unseen=("snail",),
    held_out=(),
    train_every=1,
    train_images=1,
    unseen_images=1,
)


class Broken(Exception):
    """A method breaks the contract; the message says what to change."""


class Darkness(Reward):
    """A toy reward: minus the mean pixel value, in percent.

    It is NaN for the prompt ``missing``. ``control`` takes its meaning away: each picture gets the
    value of its neighbour in the batch, and a gradient that points up or down by a coin toss.
    """

    unit, reference, differentiable = "% of the pixel range, negative", "ours", True

    def __init__(
        self, device: Any = "cpu", control: bool = False, missing: str | None = None
    ) -> None:
        self.control, self.calls, self.missing = control, 0, missing

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        values = -100 * images.mean((1, 2, 3))
        if self.missing is not None:
            there = [1.0 if prompt != self.missing else math.nan for prompt in prompts]
            values = values * torch.tensor(there, device=values.device)
        if not self.control:
            return values
        self.calls += 1
        toss = torch.Generator().manual_seed(self.calls)
        sign = 1.0 - 2.0 * torch.randint(2, values.shape, generator=toss).to(values.device)
        return values.detach().roll(1) + sign * (values - values.detach())


@dataclass
class Bench:
    """A method under test and what it works on."""

    method: Method
    backbone: BaseBackbone

    @property
    def counts(self) -> Counter[Pass]:
        """What the ledger has counted."""
        return Counter(self.backbone.ledger.counts)

    def run(self, steps: range) -> dict[str, Tensor]:
        """Do the steps; the trained weights afterwards."""
        for step in steps:
            self.method.step(step)
        return self.backbone.weights()


@functools.cache
def model() -> tuple[BaseBackbone, dict[str, Tensor]]:
    """The embedded model and its first weights."""
    backbone = load(BACKBONE, Ledger())
    return backbone, backbone.weights()


def preset_config(name: str) -> Sampling:
    """The preset's configuration. Raises Broken if it is no ``Sampling``."""
    config = method_defaults(name, load_preset(BACKBONE))
    if not isinstance(config, Sampling):
        raise Broken(
            "let Config inherit Batch if each optimizer step draws one batch, else Sampling (both "
            "from methods): the checks and the planner need its micro_batch, sampling_steps and "
            "guidance"
        )
    return config


def small_config(name: str, **changes: Any) -> Sampling:
    """A configuration that makes steps small, with ``changes`` over it."""
    config = preset_config(name)
    try:
        small = config.small(SAMPLES, SAMPLING_STEPS)
    except NotImplementedError:
        raise Broken(
            "the checks cannot make Config small: give it the property update_size, how many "
            "samples an optimizer step learns from, and resized(update_size), the same Config with "
            "so many (see benchmarks.api.Sampling); or let it inherit Batch"
        ) from None
    return dataclasses.replace(small, **changes)


def bench(name: str, **changes: Any) -> Bench:
    """A fresh method in its small configuration with ``changes``, on the model as it was first.

    All benches share one model: use them one after the other.
    """
    return bench_of(name, small_config(name, **changes), Darkness(), load_task(PROMPTS).train[:3])


def bench_of(name: str, config: Any, reward: Reward, prompts: Sequence[str]) -> Bench:
    """A fresh method with this configuration, which trains on ``prompts`` in turn."""
    backbone, start = model()
    backbone.load_weights(start)
    backbone.ledger.load_state_dict(Ledger().state_dict())

    def scale() -> Scale:
        return Scale(mean=-50.0, deviation=10.0)

    guard = Guard(backbone.ledger, "toy", backbone.ledger.counted(reward), scale)
    context = Context(
        backbone=backbone,
        reward=guard.reward,
        prompts=lambda step, count: [prompts[(step + i) % len(prompts)] for i in range(count)],
        streams=Streams(0),
        scale=scale,
    )
    return Bench(registry.methods.get(name)(config, context), backbone)


def configuration(name: str) -> None:
    """A frozen dataclass of defaults that say what they mean; unknown keys are refused."""
    cls: Any = registry.methods.get(name).Config
    parameters = getattr(cls, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise Broken("Config must be a dataclass with frozen=True")
    try:
        config = cls()
    except TypeError as error:
        raise Broken(f"every field of Config needs a default ({error})") from error
    tables = {f.name for f in dataclasses.fields(cls) if is_dataclass(getattr(config, f.name))}
    silent = [field for field, text in meanings(cls).items() if not text and field not in tables]
    if silent:
        raise Broken(
            f"say what {', '.join(silent)} means and where its default comes from, in the field's "
            'metadata={"help": ...} or in a docstring under it'
        )
    if override(config, dataclasses.asdict(config), name) != config:
        raise Broken("Config does not survive being written out and read back")
    try:
        override(config, {"no_such_field": 1}, name)
    except UserError:
        return
    raise Broken("Config accepts keys that it does not have")


def two_steps_are_finite(name: str) -> None:
    """Reward, loss and gradient norm of two steps are numbers."""
    method = bench(name).method
    for step in range(2):
        result = method.step(step)
        for what in ("reward", "loss", "grad_norm"):
            if not math.isfinite(getattr(result, what)):
                raise Broken(
                    f"step {step}: {what} is {getattr(result, what)}: look for a division by zero, "
                    "the logarithm of zero, or too long a step"
                )


def only_what_is_trained_moves(name: str) -> None:
    """The frozen weights stay bit-identical and the trained ones change."""
    this = bench(name)
    trained = {id(p) for p in this.backbone.parameters()}
    base = [p for m in this.backbone.modules() for p in m.parameters() if id(p) not in trained]
    before, start = [p.clone() for p in base], this.backbone.weights()
    end = this.run(range(4))
    if not all(torch.equal(p, q) for p, q in zip(base, before, strict=True)):
        for parameter, value in zip(base, before, strict=True):
            parameter.data = value  # the model serves other benches
        raise Broken("a frozen weight changed: optimise context.backbone.parameters() only")
    if all(torch.equal(end[k], start[k]) for k in start):
        raise Broken("no trained weight changed in four steps: is the optimizer stepped?")


def same_seed_same_result(name: str) -> None:
    """Two runs from one seed end in the same weights."""
    first, second = (bench(name).run(range(3)) for _ in range(2))
    if _differ(first, second):
        raise Broken("two runs differ: draw every random number from context.streams")


def resuming_changes_nothing(name: str) -> None:
    """Four steps equal two, save, restore and two, the ledger included."""
    whole = bench(name)
    expected, counts = whole.run(range(4)), whole.counts
    first = bench(name)
    weights, ledger = first.run(range(2)), first.backbone.ledger.state_dict()
    with TemporaryDirectory() as folder:
        try:
            checkpoint.save(Path(folder) / "state.safetensors", first.method.state_dict())
        except TypeError as error:
            raise Broken(f"state_dict() cannot be saved: {error}") from error
        state = checkpoint.load(Path(folder) / "state.safetensors")
    second = bench(name)
    second.backbone.load_weights(weights)
    second.method.load_state_dict(state)
    second.backbone.ledger.load_state_dict(ledger)
    if _differ(expected, second.run(range(2, 4))):
        raise Broken("a resumed run ends elsewhere: state_dict() misses something a step needs")
    if second.counts != counts:
        raise Broken("a resumed run does other work than an uninterrupted one")


def ledger_equals_spy(name: str) -> None:
    """The ledger's denoiser passes equal what the denoiser's ``forward`` has really seen."""
    this, seen = bench(name), 0
    denoiser: Any = this.backbone.denoiser
    forward = denoiser.forward

    def spy(latents: Tensor, *more: Any, **options: Any) -> Any:
        nonlocal seen
        seen += len(latents)
        return forward(latents, *more, **options)

    denoiser.forward = spy
    try:
        this.run(range(2))
    finally:
        denoiser.forward = forward
    counted = passes(this.counts, "denoiser", "forward", "recompute")
    if counted != seen:
        raise Broken(
            f"the denoiser ran on {seen} samples and the ledger counted {counted}: call the "
            "module, not its forward(), best through context.backbone"
        )


def needs_are_honest(name: str) -> None:
    """``needs`` says whether the gradient of the reward is used."""
    this = bench(name)
    this.run(range(4))
    needs = registry.methods.get(name).needs
    if not needs & {"reward", "reward_grad"} or needs - {"reward", "reward_grad"}:
        raise Broken("needs must be frozenset({'reward'}) or frozenset({'reward_grad'})")
    used = passes(this.counts, "reward", "backward") > 0
    if used and "reward_grad" not in needs:
        raise Broken("the gradient of the reward is used: add 'reward_grad' to needs")
    if not used and "reward_grad" in needs:
        raise Broken("the gradient of the reward is never used: needs should say 'reward'")


def evaluation_changes_nothing(name: str) -> None:
    """Drawing pictures between steps leaves training as it was."""
    expected = bench(name).run(range(3))
    other = bench(name)
    for step in range(3):
        with other.backbone.ledger.paused():
            pictures(other.backbone, ["cat"], 2, 2.0)
        end = other.run(range(step, step + 1))
    if _differ(expected, end):
        raise Broken("an evaluation between steps changes training: keep no hidden state")


def a_budget_is_kept(name: str) -> None:
    """Through the harness: records end at the last step that fits, and that comes soon.

    The budget is nine tenths of what three steps cost.
    """
    three, steps = bench(name), 0
    three.run(range(3))
    budget = 0.9 * three.backbone.ledger.flops
    if not budget:
        raise Broken("three steps cost nothing: leave the ledger alone")

    def impatient(share: float, text: str) -> None:
        nonlocal steps
        steps += 1
        if steps > 20:
            raise Broken("20 steps have not spent the budget of three: leave the ledger alone")

    spec = Spec(
        method=name,
        config=small_config(name),
        task=TASK,
        reward="toy",
        backbone=BACKBONE,
        precision="fp32",
        keep="all",
        seed=0,
        budget=Budget("flops", budget),
        evaluation=EvaluationSettings(sampling_steps=2, guidance=1.0, features="alignment"),
    )
    # Not ``patch.dict``, which would also take away the rewards that are first used inside.
    registry.rewards.entries["toy"] = Darkness
    with TemporaryDirectory() as out, contextlib.ExitStack() as after:
        after.callback(registry.rewards.entries.pop, "toy")
        cell = Harness(Path(out), device=three.backbone.device).run(spec, impatient)
        lines = (cell / "steps.jsonl").read_text().splitlines() if steps else []
    spent = [json.loads(line)["flops"] for line in lines]
    if not spent or spent[-1] > budget or spent != sorted(spent):
        raise Broken(
            f"of a budget of {budget:.3g} FLOPs the steps have spent {spent}: a step must cost the "
            "same in every run, and may not touch the ledger"
        )


def micro_batches_change_memory_only(name: str) -> None:
    """Micro-batches of one and two samples report the same, to float32's rounding.

    The reward has no value for one of the prompts. A method may refuse a micro-batch of one.
    """
    prompts = load_task(PROMPTS).train[:3]
    found: list[dict[str, list[float]]] = []
    for size in (SAMPLES // 2, 1):
        config = small_config(name, micro_batch=size)
        try:
            method = bench_of(name, config, Darkness(missing=prompts[0]), prompts).method
        except UserError:
            return
        results = [method.step(step) for step in range(3)]
        found.append({w: [getattr(r, w) for r in results] for w in ("reward", "grad_norm")})
    for what, expected in found[0].items():
        if not _close(found[1][what], expected):
            raise Broken(
                f"micro-batches of {SAMPLES // 2} give {what} {expected}, those of 1 give "
                f"{found[1][what]}: draw no random number per micro-batch, divide by the whole "
                "batch, and take statistics over it"
            )


def two_processes_equal_one(name: str) -> None:
    """Two processes that share the samples report and count what one does, to float32's rounding.

    They are forked from this one, on the CPU.
    """
    with TemporaryDirectory() as folder:
        _measure(name, folder)
        debug_launcher(_measure, (name, folder), num_processes=2)
        alone, *others = (checkpoint.load(p) for p in sorted(Path(folder).iterdir()))
    for found in others:
        for what in ("reward", "grad_norm", "counts"):
            if not _close(found[what], alone[what]):
                raise Broken(
                    f"one process gives {what} {alone[what]}, two give {found[what]}: loop over "
                    "methods.micro_batches(samples, micro_batch), divide by the whole "
                    "batch, add up what is reported with total(), and update with Optimizer"
                )


def _measure(name: str, folder: str) -> None:
    """Two steps in this process, alone or one of several; writes what they report and count."""
    if distributed.processes() > 1:
        torch.set_num_threads(1)  # a forked process has none of its parent's
    this = bench(name)
    ledger = this.backbone.ledger
    found: dict[str, list[float]] = {"reward": [], "grad_norm": []}
    for step in range(2):
        with ledger.across_processes():
            result = this.method.step(step)
        found["reward"].append(result.reward)
        found["grad_norm"].append(result.grad_norm)
    found["counts"] = [float(ledger.counts[kind]) for kind in KINDS]
    place = f"{distributed.processes()}-{distributed.process()}.safetensors"
    checkpoint.save(Path(folder) / place, found)


def _close(found: list[float], expected: list[float]) -> bool:
    return all(
        math.isclose(one, other, rel_tol=1e-2, abs_tol=1e-6)
        for one, other in zip(found, expected, strict=True)
    )


CHECKS: dict[str, Callable[[str], None]] = {
    check.__name__: check
    for check in (
        configuration,
        two_steps_are_finite,
        only_what_is_trained_moves,
        same_seed_same_result,
        resuming_changes_nothing,
        ledger_equals_spy,
        needs_are_honest,
        evaluation_changes_nothing,
        a_budget_is_kept,
        micro_batches_change_memory_only,
        two_processes_equal_one,
    )
}


def _differ(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return any(not torch.equal(first[k], second[k]) for k in first)
