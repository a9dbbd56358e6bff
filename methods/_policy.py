"""Denoising as a policy: what methods share that learn from the densities of sampling steps.

Each sampling step that the sampler scores is an action, whose log-probability is averaged over
latent dimensions. An update replays the actions of its pictures, and meets each with its
log-probability when it was drawn (old), under the base model (reference) and now. Latents are
replayed as they are stored, in the micro-batches they were drawn in during the first pass, so that
now equals old exactly before the first update.

Where a round serves one update only, theta is still old: the log-probabilities of sampling are
those of the update. If all activations are kept (``--keep all``), they keep their graphs, and the
forward passes of the update are saved; the gradient is the same.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from methods import Context, Trajectory, UserError, gather, torch
from methods._rounds import Round, RoundMethod

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Replay:
    """One sampling step of a micro-batch, predicted once more."""

    i: int
    latents: Tensor
    """Before the step, (B, C, h, w)."""
    output: Tensor
    """The denoiser's, (B, C, h, w)."""
    log_prob: Tensor
    """Of the latents that were drawn, (B,)."""


@dataclass
class Actions:
    """Scored sampling steps of a micro-batch of an update; tensors are (pictures, steps)."""

    rows: Sequence[int]
    """The pictures."""
    log_probs: Tensor
    """Now, with gradient."""
    old: Tensor
    """When they were drawn."""
    reference: Tensor | None
    """Under the base model, for methods that compare with it."""
    advantages: Tensor
    """What the method makes of the rewards."""
    size: int
    """How many actions the whole update has, for means."""
    replay: Replay | None = None
    """Where the actions are one step."""

    @property
    def ratio(self) -> Tensor:
        """rho = p_theta / p_old."""
        return torch.exp(self.log_probs - self.old)


class PolicyMethod(RoundMethod):
    """Replays the actions of a round; a subclass says what is minimised over them."""

    #: Whether the base model's log-probs are wanted.
    compares: ClassVar[bool] = False
    #: Whether the loss needs all steps of a trajectory at once.
    whole: ClassVar[bool] = False

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        scored = len(self.sampler.scored)
        if not scored:
            raise UserError("a policy gradient needs a stochastic sampler: eta must be positive")
        self.trained = config.trained(scored)
        #: This process's micro-batches of the round: rows, and log-probs with their graphs.
        self.kept: list[tuple[Sequence[int], Tensor]] = []

    @abstractmethod
    def loss(self, actions: Actions) -> Tensor:
        """What these actions add to the mean loss of the update."""

    def keeps(self) -> bool:
        """Whether sampling keeps what the update needs."""
        every = self.trained == len(self.sampler.scored)
        return self.phases == 1 and every and self.context.backbone.keep == "all"

    def sample(self, step: int) -> Round:
        self.kept = []
        data = super().sample(step)
        if self.compares:
            data.reference = self.under_base_model(data)
        return data

    def graphs(self) -> Sequence[bool] | None:
        scored = self.sampler.scored if self.keeps() else ()
        return [i in scored for i in range(len(self.sampler))]

    def drawn(self, rows: Sequence[int], trajectory: Trajectory) -> None:
        if self.keeps():
            self.kept.append((rows, trajectory.log_probs))

    def learn(self, step: int, phase: int) -> tuple[float, dict[str, float]]:
        loss, deviations = 0.0, [0.0]
        for actions in self.again() if self.keeps() else self.replayed(step, phase):
            share = self.loss(actions)
            share.backward()
            loss += float(share.detach())
            deviations.append(float((actions.ratio.detach() - 1).abs().max()))
        return loss, {"ratio_deviation": float(gather([torch.tensor(deviations)]).max())}

    def again(self) -> Iterator[Actions]:
        """The actions of the round with the graphs that sampling has kept."""
        columns = range(len(self.sampler.scored))
        while self.kept:  # one after the other, so that what has served is freed
            rows, log_probs = self.kept.pop()
            yield self.actions(rows, columns, log_probs)

    def replayed(self, step: int, phase: int) -> Iterator[Actions]:
        """The actions of one update, whose pictures pass the denoiser once more.

        With ``timestep_fraction`` below 1 all pictures of an update train the same steps.
        """
        scored = len(self.sampler.scored)
        columns = self.context.streams.permutation("timesteps", step, scored)[: self.trained]
        for rows in self.parts(self.batch(step, phase)):
            if self.whole:
                replays = [self.replay(rows, column, recompute=True) for column in columns]
                yield self.actions(rows, columns, torch.stack([r.log_prob for r in replays], 1))
                continue
            for column in columns:
                replay = self.replay(rows, column)
                yield self.actions(rows, [column], replay.log_prob[:, None], replay)

    def replay(
        self,
        rows: Sequence[int],
        column: int,
        *,
        recompute: bool = False,
        data: Round | None = None,
    ) -> Replay:
        """One scored sampling step of some pictures of the round."""
        backbone, data = self.context.backbone, data or self.round
        assert data is not None
        i = self.sampler.scored[column]
        latents, drawn = (data.latents[list(rows), k].to(backbone.device) for k in (i, i + 1))
        output = backbone.predict(
            latents,
            self.sampler.timesteps[i],
            backbone.encode([data.prompts[row] for row in rows]),
            self.config.guidance,
            recompute=recompute,
        )
        log_prob = self.sampler.log_prob(i, drawn, self.sampler.mean(i, output, latents))
        return Replay(i, latents, output, log_prob)

    def base_output(self, replay: Replay, rows: Sequence[int]) -> Tensor:
        """What the base model gives where ``replay`` was predicted."""
        backbone, data = self.context.backbone, self.round
        assert data is not None
        with torch.no_grad(), backbone.adapting(False):
            return backbone.predict(
                replay.latents,
                self.sampler.timesteps[replay.i],
                backbone.encode([data.prompts[row] for row in rows]),
                self.config.guidance,
            )

    def under_base_model(self, data: Round) -> Tensor:
        """The base model's log-probs of a round, (N, scored)."""
        columns = range(len(self.sampler.scored))
        with torch.no_grad(), self.context.backbone.adapting(False):
            return gather(
                [
                    torch.stack([self.replay(rows, c, data=data).log_prob for c in columns], 1)
                    for rows in self.parts(range(self.config.samples_per_round))
                ]
            )

    def actions(
        self,
        rows: Sequence[int],
        columns: Sequence[int],
        log_probs: Tensor,
        replay: Replay | None = None,
    ) -> Actions:
        """What the round knows of these actions."""
        data = self.round
        assert data is not None and data.log_probs is not None

        def of(values: Tensor) -> Tensor:
            table = values if values.dim() == 2 else values[:, None].expand_as(data.log_probs)
            return table[list(rows)][:, list(columns)].to(log_probs.device)

        return Actions(
            rows=rows,
            log_probs=log_probs,
            old=of(data.log_probs),
            reference=None if data.reference is None else of(data.reference),
            advantages=of(data.advantages),
            size=self.config.update_size * self.trained,
            replay=replay,
        )


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """PPO's loss of each action, max(-A rho, -A clip(rho, 1 - c, 1 + c))."""
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(-advantages * ratio, -advantages * clipped)
