"""The loop around a method: the clock, the budget, evaluation times and records."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks import cut_prompts, registry
from benchmarks.api import Context, Keep, Method, Reward, Scale, StepResult, UserError
from benchmarks.backbone import load
from benchmarks.backbone.base import BaseBackbone
from benchmarks.compute.floors import floors, kept
from benchmarks.compute.ledger import Ledger
from benchmarks.distributed import alone, from_first, process, start
from benchmarks.forecast.peak_memory import choose
from benchmarks.harness import interrupt
from benchmarks.harness.evaluate import Evaluation, calibrate, evaluate, pictures
from benchmarks.harness.guard import Guard
from benchmarks.harness.placebo import placebo
from benchmarks.harness.spec import Spec
from benchmarks.records import tracking
from benchmarks.records.cell import Cell, write_json
from benchmarks.records.circumstances import circumstances
from benchmarks.streams import Streams

#: So many pictures per split are kept of the evaluations between the first and the last.
BETWEEN = 16
#: At most this much work is lost when a run is killed. Seconds.
CHECKPOINT_EVERY = 30.0

Found = TypeVar("Found")
Progress = Callable[[float, str], None]  # share of the budget used, what to say


def peak_memory(device: torch.device) -> dict[str, int]:
    """Most bytes allocated on the device so far; nothing on a CPU, which does not count them."""
    cuda = device.type == "cuda"
    return {"peak_bytes": torch.cuda.max_memory_allocated(device)} if cuda else {}


def price_reward(backbone: BaseBackbone, reward: Reward, prompt: str) -> None:
    """Load the reward, and measure for the ledger what a query and its gradient cost."""
    latents = torch.zeros(1, *backbone.latent_shape, device=backbone.device)
    with torch.no_grad(), backbone.ledger.paused():
        images = backbone.decode(latents)
    images.requires_grad_(reward.differentiable)
    reward(images, [prompt])
    backbone.ledger.price("reward", lambda: reward(images, [prompt]))


@dataclass
class Snapshot:
    """A state that may be evaluated: trained weights and the counters when it was reached."""

    step: int
    weights: dict[str, Tensor]
    totals: dict[str, float]


class Harness:
    """Runs cells; base-model evaluations are shared between cells that agree on them."""

    def __init__(
        self, out: Path, device: torch.device | None = None, track: tracking.Name | None = None
    ) -> None:
        self.out, self.device, self.track = out, device or start(), track
        self._base: dict[str, Any] = {}

    def run(self, spec: Spec, progress: Progress = lambda share, text: None) -> Path:
        """Run one cell unless it is done; returns its directory."""
        around = {"sources": dict(spec.sources), **circumstances(self.device)}
        cell = Cell(self.out, spec.description(), around, self.track)
        with cell.claimed():
            if cell.done:
                return cell.path
            try:
                if self.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(self.device)
                Run(self, spec, cell, progress).train()
            except (Exception, SystemExit) as error:
                interrupt.check()
                cell.fail(error)
                raise
            cell.finish()
        return cell.path

    def base(self, key: str, measure: Callable[[], Found]) -> Found:
        """Cache a measurement of the base model across cells, once per distinct key."""
        if key not in self._base:
            self._base[key] = measure()
        found: Found = self._base[key]
        return found


class Run:
    """One cell in progress."""

    def __init__(self, harness: Harness, spec: Spec, cell: Cell, progress: Progress) -> None:
        self.harness, self.spec, self.cell, self.progress = harness, spec, cell, progress
        self.ledger = Ledger()
        self.backbone = load(
            spec.backbone,
            self.ledger,
            precision=spec.precision,
            rank=spec.rank,
            seed=spec.seed,
            device=harness.device,
            compile=spec.compile,
        )
        self.rewards: dict[str, Reward] = {
            name: registry.rewards.get(name)(harness.device) for name in spec.reported
        }
        readers: dict[str, cut_prompts.Reader] = {"the model": self.backbone}
        readers |= {f"reward {name}": reward for name, reward in self.rewards.items()}
        self.cut = cut_prompts.warned(readers, [*spec.task.train, *spec.task.unseen])
        space = spec.evaluation.features
        self.space = self.rewards.get(space) or registry.rewards.get(space)(harness.device)
        self.base_features: dict[str, Tensor] = {}  # by split, on the evaluation's noise
        self.floors: dict[str, dict[str, float]] = {}  # by split, of the guard's rewards
        self.normalisers = self._calibrate()
        train = self.rewards[spec.train_reward]
        price_reward(self.backbone, train, spec.task.train[0])
        self.streams = Streams(spec.seed)
        paid = self.ledger.counted(train)
        if spec.placebo:
            paid = placebo(paid, self.scale)
        self.guard = Guard(self.ledger, spec.train_reward, paid, self.scale)
        context = Context(
            backbone=self.backbone,
            reward=self.guard.reward,
            prompts=self._prompts,
            streams=self.streams,
            scale=self.scale,
        )
        if spec.placebo or not spec.rank:
            self.scale()  # now: off the clock, and as long as all weights are the base model's
        method_class = registry.methods.get(spec.method)
        self.method: Method = method_class(spec.config, context)
        self._evaluated: dict[int, list[Evaluation]] = {}

    def _calibrate(self) -> dict[str, Any]:
        prompts = self.spec.task.evaluation_prompts()["train"]
        return calibrate(self.rewards, prompts, lambda: self._base_images(prompts))

    def _base_images(self, prompts: Sequence[str]) -> Tensor:
        """The base model's pictures of ``prompts``, the same in all cells, off the ledger."""
        settings = self.spec.evaluation
        part = (0.0, 0.0) if self.spec.rank else (0.0, 1.0)  # of the steps that use LoRA matrices

        def measure() -> Tensor:
            steps, guidance = settings.sampling_steps, settings.guidance
            with self.ledger.paused():
                return pictures(self.backbone, prompts, steps, guidance, part=part)

        images = self.harness.base(f"pictures {self._base_key()}", measure)
        return images.to(self.harness.device)

    def scale(self) -> Scale:
        """The base model's mean and deviation of the train reward; see ``Context``."""
        name = self.spec.train_reward
        if self.rewards[name].standardised:
            return Scale(mean=0.0, deviation=1.0)

        def measure() -> Scale:
            prompts = self.spec.task.evaluation_prompts()["train"]
            with alone(), torch.no_grad():  # others may not need it now
                values = self.rewards[name](self._base_images(prompts), prompts).double()
            finite = values[values.isfinite()]
            if not len(finite):
                raise UserError(
                    f"reward {name!r} has no finite value for the base model's pictures"
                )
            deviation = float(finite.std(correction=0))
            return Scale(mean=float(finite.mean()), deviation=deviation or 1.0)

        found = self.harness.base(f"scale {name} {self._base_key()}", measure)
        self.normalisers.setdefault(name, {}).update(dataclasses.asdict(found))
        return found

    def _prompts(self, step: int, count: int) -> list[str]:
        if count < 1:
            raise UserError(f"a step of {count} samples: the batch size must be at least 1")
        prompts = self.spec.task.train
        chosen = (self.streams.integer("prompt", step, 0, len(prompts), i) for i in range(count))
        return [prompts[i] for i in chosen]

    def train(self) -> None:
        """Step until the budget is spent; evaluate the last state that fits each share of it."""
        budget = self.spec.budget
        state, pending = self._start()
        if self.normalisers and process() == 0:
            write_json(self.cell.path / "normalisers.json", self.normalisers)
        if self.cut and process() == 0:
            write_json(self.cell.path / "cut_prompts.json", self.cut)
        saved = time.monotonic()
        while pending:
            interrupt.check()
            self.cell.step = state.step
            with self.ledger.across_processes(), self.ledger.clock(self.harness.device):
                result = self.method.step(state.step)
            self.guard.check(state.step, result)
            peak = peak_memory(self.harness.device)
            self.ledger.optimizer_steps += 1
            before, state = state, self._snapshot(state.step + 1)
            spent = self.ledger.spent(budget.kind) / budget.amount
            if spent <= 1:
                record = _numbers(result) | state.totals | peak
                self.cell.append("steps", {"step": state.step} | record)
                self.progress(spent, f"reward {result.reward:.4g}")
            while pending and budget.reached(pending[0], spent):
                # Step 1 may cost nothing; it still is not the base model.
                exact = spent == pending[0] and spent > 0
                self._evaluate(state if exact else before, pending.pop(0))
            if spent > 1:
                state = before  # the step that did not fit never happened
                break
            if process() == 0 and time.monotonic() - saved >= CHECKPOINT_EVERY:
                self._save(state, pending)
                saved = time.monotonic()
        self.backbone.load_weights(state.weights)
        if process() == 0:
            self.backbone.save_weights(self.cell.path, state.weights)

    def _start(self) -> tuple[Snapshot, list[float]]:
        """The first state and all shares of the budget, or those of the last checkpoint."""
        saved = self.cell.begin()
        self.backbone.use(saved["keep"] if saved else self._keep())
        if saved is None:
            return self._snapshot(0), list(self.spec.evaluate_at)
        self.ledger.load_state_dict(saved["ledger"])
        self.backbone.load_weights(saved["weights"])
        self.method.load_state_dict(saved["method"])
        self.guard.mute = saved["mute"]
        self.base_features, self.floors = saved["base_features"], saved["floors"]
        return self._snapshot(saved["step"]), saved["pending"]

    def _keep(self) -> Keep:
        spec = self.spec
        device = self.harness.device
        if spec.keep != "auto":
            return spec.keep
        return from_first(
            lambda: choose(
                spec.method, spec.config, spec.backbone, spec.precision, device, spec.rank
            )
        )

    def _save(self, state: Snapshot, pending: list[float]) -> None:
        self.cell.checkpoint(
            state.step,
            {
                "step": state.step,
                "pending": pending,
                "keep": self.backbone.keep,
                "weights": state.weights,
                "method": self.method.state_dict(),
                "ledger": self.ledger.state_dict(),
                "mute": self.guard.mute,
                "base_features": self.base_features,
                "floors": self.floors,
            },
        )

    def _snapshot(self, step: int) -> Snapshot:
        return Snapshot(step, self.backbone.weights(), self.ledger.totals())

    def _evaluate(self, state: Snapshot, fraction: float) -> None:
        spec = self.spec

        def measure() -> list[Evaluation]:
            prompts = spec.task.evaluation_prompts()
            base = self.base_features if state.step else None
            return evaluate(self.backbone, prompts, self.rewards, self.space, spec.evaluation, base)

        if state.step not in self._evaluated:
            now = self.backbone.weights()
            self.backbone.load_weights(state.weights)
            self._evaluated[state.step] = (
                measure() if state.step else self.harness.base(self._base_key(), measure)
            )
            self.backbone.load_weights(now)
        if state.step == 0:
            self.base_features = {r.split: r.features for r in self._evaluated[0]}
            self.floors = {
                r.split: floors(r.record["per_image"], spec.task.guard) for r in self._evaluated[0]
            }
        for result in self._evaluated[state.step]:
            ends = state.step == 0 or fraction == 1.0
            images = result.images if ends else result.images[:BETWEEN]
            self.cell.save_images(result.split, state.step, images)
            head = {"step": state.step, "fraction": fraction}
            guarded: dict[str, Any] = {}
            if spec.task.guard:
                least = self.floors[result.split]
                guarded = {"floors": least, "kept": kept(result.record["rewards"], least)}
            self.cell.append("evals", head | state.totals | result.record | guarded)

    def _base_key(self) -> str:
        spec = self.spec
        model = (spec.backbone, spec.precision)
        return repr((model, spec.task, sorted(spec.reported), spec.evaluation))


def _numbers(result: StepResult) -> dict[str, float | None]:
    """For the record: what is not finite has no number in JSON."""
    numbers = {"reward": result.reward, "loss": result.loss, "grad_norm": result.grad_norm}
    return {k: v if math.isfinite(v) else None for k, v in (numbers | dict(result.extra)).items()}
