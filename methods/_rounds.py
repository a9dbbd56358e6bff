"""What methods share that draw a round of pictures and learn from it in several updates.

A round is N pictures in groups of one prompt, drawn by the current policy and scored. Its updates
are split into passes (inner epochs); the first has the order of the round, so that its
micro-batches are those of the sampling, and later ones are shuffled. ``benchmarks.streams`` names
all noise by picture, so neither micro-batches nor processes change anything.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from methods import (
    AdamW,
    Context,
    Count,
    Method,
    Optimizer,
    Sampler,
    Sampling,
    Share,
    StepResult,
    Trajectory,
    UserError,
    ZeroToOne,
    gather,
    micro_batches,
    torch,
    total,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rounds(Sampling):
    """The ``Config`` of such a method. It gives these fields defaults of its own."""

    samples_per_round: Count = field(default=256, metadata={"help": "samples per round [ours]"})
    samples_per_prompt: Count = field(default=8, metadata={"help": "of each prompt [ours]"})
    updates_per_round: Count = field(default=1, metadata={"help": "updates per pass [ours]"})
    inner_epochs: Count = field(default=1, metadata={"help": "passes over a round [ours]"})
    eta: ZeroToOne = field(default=1.0, metadata={"help": "the sampler's stochasticity [ours]"})
    optimizer: AdamW = field(default=AdamW(lr=3e-4), metadata={"help": "[ours]"})

    @property
    def update_size(self) -> int:
        return self.samples_per_round // self.updates_per_round

    def resized(self, update_size: int) -> Self:
        samples = update_size * self.updates_per_round
        if samples % self.samples_per_prompt:
            raise UserError(f"samples_per_round cannot be {samples}: see samples_per_prompt")
        return replace(self, samples_per_round=samples)

    def small(self, samples: int, sampling_steps: int) -> Self:
        grouped = replace(self, samples_per_prompt=2, updates_per_round=2, micro_batch=samples // 2)
        return grouped.resampled(sampling_steps).resized(samples // 2)


@dataclass(frozen=True, kw_only=True)
class StepRounds(Rounds):
    """The ``Config`` of such a method that trains on the sampling steps of a round."""

    timestep_fraction: Share = field(
        default=1.0, metadata={"help": "share of the sampling steps that an update trains [ours]"}
    )

    def resampled(self, sampling_steps: int) -> Self:
        share = max(self.timestep_fraction, 1 / sampling_steps)  # of few steps still one
        return replace(super().resampled(sampling_steps), timestep_fraction=share)

    def trained(self, steps: int) -> int:
        """How many of so many steps. Raises UserError if it is none, or more than there are."""
        count = round(self.timestep_fraction * steps)
        if not 0 < count <= steps:
            raise UserError(
                f"timestep_fraction is {self.timestep_fraction:g}: of {steps} sampling steps that "
                f"can be trained that is {count}; choose above 0 to 1"
            )
        return count


@dataclass
class Round:
    """N pictures, on the CPU."""

    step: int
    """The optimizer step that drew them."""
    prompts: list[str]
    latents: Tensor
    """x_T ... x_0, (N, T + 1, C, h, w); (N, 1, C, h, w) if only x_0 is needed."""
    log_probs: Tensor | None
    """Of the scored sampling steps when they were drawn, (N, scored); None if none is."""
    rewards: Tensor
    """(N,)"""
    advantages: Tensor
    """What the method makes of the rewards: (N,), or (N, scored) if steps differ."""
    reference: Tensor | None = None
    """The log-probs under the base model, for methods that compare with it."""


class RoundMethod(Method):
    """Draws rounds, says which pictures an update learns from, and saves its state."""

    needs: ClassVar[frozenset[str]] = frozenset({"reward"})
    #: So many neighbours belong together: they stay in one micro-batch and in one update.
    unit: ClassVar[int] = 1
    #: Whether a round keeps whole trajectories, or x_0 alone.
    trajectories: ClassVar[bool] = True

    def __init__(self, config: Any, context: Context) -> None:
        if config.samples_per_round % config.updates_per_round:
            raise UserError("samples_per_round must be a multiple of updates_per_round")
        if config.update_size % config.micro_batch:
            raise UserError(
                "samples_per_round / updates_per_round must be a multiple of micro_batch"
            )
        if config.samples_per_round % config.samples_per_prompt:
            raise UserError("samples_per_round must be a multiple of samples_per_prompt")
        for name in ("samples_per_prompt", "micro_batch"):
            if getattr(config, name) % self.unit:
                raise UserError(f"{name} must be a multiple of {self.unit}: pictures are compared")
        self.config, self.context = config, context
        self.sampler = self.sampler_at(0)
        self.optimizer = Optimizer(config.optimizer, context.backbone.parameters())
        self.round: Round | None = None

    # What a method says.

    @abstractmethod
    def learn(self, step: int, phase: int) -> tuple[float, dict[str, float]]:
        """Accumulate the gradient of one update: this process's share of the loss, and extras."""

    def advantages(self, drawn: Round) -> Tensor:
        """(N,) or (N, scored), from the rewards of a round."""
        return drawn.rewards

    def graphs(self) -> Sequence[bool] | None:
        """Of which sampling steps the log-probs keep their graphs; none: of no step."""
        return None

    def drawn(self, rows: Sequence[int], trajectory: Trajectory) -> None:
        """A micro-batch of the round has just been drawn."""

    def noise_group(self) -> int:
        """So many neighbours start from the same noise x_T."""
        return 1

    def sampler_at(self, step: int) -> Sampler:
        """The sampler of the round that begins at this optimizer step."""
        return self.context.backbone.sampler(self.config.sampling_steps, self.config.eta)

    # What all share.

    @property
    def phases(self) -> int:
        """Optimizer steps per round."""
        return self.config.updates_per_round * self.config.inner_epochs

    def step(self, step: int) -> StepResult:
        phase = step % self.phases
        if phase == 0:
            self.sampler = self.sampler_at(step)
            self.round = self.sample(step)
        data = self.round
        assert data is not None
        loss, extra = self.learn(step, phase)
        (loss,) = total(loss)
        return StepResult(
            reward=float(data.rewards.mean()),
            loss=loss,
            grad_norm=self.optimizer.step(),
            informative=_differ(data.rewards) and _differ(data.advantages),
            extra=extra,
        )

    def sample(self, step: int) -> Round:
        """Draw and score one round."""
        config, backbone, streams = self.config, self.context.backbone, self.context.streams
        count, group, shape = config.samples_per_round, self.noise_group(), backbone.latent_shape
        drawn = self.context.prompts(step, count // config.samples_per_prompt)
        prompts = [prompt for prompt in drawn for _ in range(config.samples_per_prompt)]
        latents, log_probs, rewards = [], [], []
        for rows in self.parts(range(count)):
            texts = [prompts[row] for row in rows]
            noise = streams.normal("noise", step, [row - row % group for row in rows], shape)
            steps = (len(self.sampler), *shape)
            trajectory = backbone.sample(
                self.sampler,
                texts,
                noise,
                guidance=config.guidance,
                step_noise=streams.normal("eta", step, rows, steps) if config.eta > 0 else None,
                gradient=self.graphs(),
                connected=False,
            )
            self.drawn(rows, trajectory)
            kept = trajectory.latents if self.trajectories else trajectory.latents[-1:]
            latents.append(torch.stack(kept, 1))
            if trajectory.log_probs is not None:
                log_probs.append(trajectory.log_probs)
            with torch.no_grad():
                rewards.append(self.context.reward(backbone.decode(trajectory.final), texts))
        scores = gather(rewards)
        densities = gather(log_probs) if self.sampler.scored else None
        data = Round(step, prompts, gather(latents), densities, scores, advantages=scores)
        data.advantages = self.advantages(data)
        return data

    def batch(self, step: int, phase: int) -> list[int]:
        """The pictures of one update. Neighbours that belong together stay neighbours."""
        unit, (epoch, update) = self.unit, divmod(phase, self.config.updates_per_round)
        order = list(range(self.config.samples_per_round // unit))
        if epoch:
            order = self.context.streams.permutation("epoch", step - update, len(order))
        size = self.config.update_size // unit
        chosen = order[update * size : (update + 1) * size]
        return [unit * number + i for number in chosen for i in range(unit)]

    def parts(self, rows: Sequence[int]) -> list[list[int]]:
        """This process's share of ``rows`` in micro-batches."""
        units = [rows[i : i + self.unit] for i in range(0, len(rows), self.unit)]
        found = micro_batches(units, self.config.micro_batch // self.unit)
        return [[row for unit in part for row in unit] for part in found]

    def state_dict(self) -> dict[str, Any]:
        rounds = vars(self.round) if self.round else None
        return {"optimizer": self.optimizer.state_dict(), "round": rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.round = Round(**state["round"]) if state["round"] else None
        if self.round:
            self.sampler = self.sampler_at(self.round.step)


def group_advantages(rewards: Tensor, group: int, spread: str = "group") -> Tensor:
    """(N,) rewards above their group's mean, in deviations of the group or of the whole round.

    In double precision, so that rewards that are all alike give 0 and not their rounding.
    """
    groups = rewards.double().view(-1, group)
    deviation = groups.std(1, keepdim=True) if spread == "group" else groups.std(correction=0)
    return ((groups - groups.mean(1, keepdim=True)) / (deviation + 1e-8)).flatten().to(rewards)


def preferences(rewards: Tensor) -> Tensor:
    """(N,) of pairs of neighbours: 1 for the better, -1 for the worse, 0 where they tie."""
    first, second = rewards.view(-1, 2).unbind(1)
    return torch.stack([(first - second).sign(), (second - first).sign()], 1).flatten()


def dpo_loss(scores: Tensor, preferred: Tensor) -> Tensor:
    """DPO's loss of pairs of neighbours: -log sigmoid of the better's score less the worse's."""
    signed = preferred * scores
    return -torch.nn.functional.logsigmoid(signed[0::2] + signed[1::2])


def _differ(values: Tensor) -> bool:
    return bool((values != values.flatten()[0]).any())
