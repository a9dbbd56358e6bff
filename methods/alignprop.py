r"""AlignProp: reward backpropagation through the denoising chain (Prabhudesai et al. 2023).

Sampling is a differentiable map from the initial noise x_T to the picture x_0, so the expected
reward can be climbed directly:

    max_theta  E_{c, x_T} [ R(decode(x_0(theta; x_T, c)), c) ]

The gradient is truncated: only the last K sampling steps carry it. ``full`` takes all of them,
``fixed`` a constant K, ``per_trajectory`` draws K ~ Uniform{0..T} (the paper, section 4),
``normal`` K from a clipped normal distribution (the authors' later code). The released code's way
is ``per_step``: it draws a threshold at every sampling step and detaches that step's prediction
only, so that the latents stay connected; step i keeps its gradient with probability
(i + 1) / (T + 1).

Each group of four samples has a draw of its own, as each micro-batch of four has in the released
code, so that an update mixes many K and a K of 0 never empties it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar, Literal

from methods import (
    AdamW,
    Batch,
    Context,
    Count,
    Finite,
    Method,
    NotNegative,
    Optimizer,
    Positive,
    StepResult,
    UserError,
    ZeroToOne,
    method_variant,
    micro_batches,
    register_method,
    total,
)

Mode = Literal["full", "fixed", "per_trajectory", "normal", "per_step"]
CODE = "AlignProp main branch"


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """Which sampling steps carry gradient."""

    mode: Mode = field(
        default="per_trajectory", metadata={"help": "how K is chosen [paper, sec. 4]"}
    )
    k: Count = field(default=1, metadata={"help": "K of mode fixed [paper, ablation]"})
    mean: Finite = field(
        default=8.0, metadata={"help": "mean of K, mode normal [later branch: 50-42]"}
    )
    std: NotNegative = field(
        default=5.0, metadata={"help": "its standard deviation [later branch]"}
    )
    group: Count | None = field(
        default=4, metadata={"help": f"samples that share a draw; none: the whole update [{CODE}]"}
    )


@dataclass(frozen=True, kw_only=True)
class Config(Batch):
    """AlignProp for SD v1.5, as released."""

    batch_size: Count = field(default=128, metadata={"help": f"samples per update [{CODE}]"})
    micro_batch: Count = field(default=4, metadata={"help": "samples at once; changes memory only"})
    sampling_steps: Count = field(default=50, metadata={"help": f"DDIM steps [{CODE}]"})
    guidance: NotNegative = field(default=7.5, metadata={"help": f"guidance scale [{CODE}]"})
    eta: ZeroToOne = field(default=0.0, metadata={"help": f"DDIM stochasticity [{CODE}]"})
    truncation: Truncation = field(default=Truncation())
    target: Finite | None = field(
        default=None,
        metadata={"help": "approach this reward instead of maximising [10, aesthetic]"},
    )
    loss_scale: Positive = field(default=0.01, metadata={"help": f"factor of the loss [{CODE}]"})
    optimizer: AdamW = field(
        default=AdamW(lr=1e-3, weight_decay=0.1, clip=5.0), metadata={"help": f"[{CODE}]"}
    )


@register_method("alignprop")
class AlignProp(Method):
    """Backpropagates the reward through the last K sampling steps."""

    Config: ClassVar[type] = Config
    needs: ClassVar[frozenset[str]] = frozenset({"reward_grad"})

    def __init__(self, config: Config, context: Context) -> None:
        if (
            config.truncation.mode == "fixed"
            and not 0 < config.truncation.k <= config.sampling_steps
        ):
            raise UserError(
                f"truncation.k is {config.truncation.k}, but there are "
                f"{config.sampling_steps} sampling steps; choose 1 to {config.sampling_steps}"
            )
        self.config, self.context = config, context
        self.sampler = context.backbone.sampler(config.sampling_steps, config.eta)
        self.optimizer = Optimizer(config.optimizer, context.backbone.parameters())

    def groups(self, samples: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Split samples into those that share a draw: the number of the draw, and they."""
        size = self.config.truncation.group or self.config.batch_size
        if self.config.truncation.mode in ("full", "fixed"):
            size = self.config.batch_size  # nothing is drawn
        for number, members in groupby(samples, lambda i: i // size):
            yield number, list(members)

    def gradient_steps(self, step: int, group: int) -> list[bool]:
        """Which sampling steps, first to last, carry gradient at this optimizer step."""
        choice, steps, streams = self.config.truncation, len(self.sampler), self.context.streams
        if choice.mode == "per_step":
            return [
                streams.integer("truncation", step, 0, steps + 1, group * steps + i) <= i
                for i in range(steps)
            ]
        if choice.mode == "full":
            k = steps
        elif choice.mode == "fixed":
            k = choice.k
        elif choice.mode == "normal":
            draw = float(streams.normal("truncation", step, [group], (1,)))
            k = min(max(round(choice.mean + choice.std * draw), 1), steps - 1)
        else:
            k = streams.integer("truncation", step, 0, steps + 1, group)
        return [i >= steps - k for i in range(steps)]

    def step(self, step: int) -> StepResult:
        config = self.config
        prompts = self.context.prompts(step, config.batch_size)
        reward = loss = carried = 0.0
        for part in micro_batches(range(config.batch_size), config.micro_batch):
            for number, rows in self.groups(part):
                gradient = self.gradient_steps(step, number)
                found = self.backward(step, rows, [prompts[i] for i in rows], gradient)
                reward, loss = reward + found[0], loss + found[1]
                carried += sum(gradient) * len(rows) / config.batch_size
        reward, loss, carried = total(reward, loss, carried)
        return StepResult(
            reward=reward,
            loss=loss,
            grad_norm=self.optimizer.step(),
            extra={"gradient_steps": carried},
        )

    def backward(
        self, step: int, rows: Sequence[int], texts: list[str], gradient: list[bool]
    ) -> tuple[float, float]:
        """Accumulate the gradient of some samples: their shares of the mean reward and loss."""
        config, backbone, streams = self.config, self.context.backbone, self.context.streams
        shape = backbone.latent_shape
        extra = (len(self.sampler), *shape)
        trajectory = backbone.sample(
            self.sampler,
            texts,
            streams.normal("noise", step, rows, shape),
            guidance=config.guidance,
            gradient=gradient,
            step_noise=streams.normal("eta", step, rows, extra) if config.eta > 0 else None,
        )
        rewards = self.context.reward(backbone.decode(trajectory.final), texts)
        loss = -rewards if config.target is None else (rewards - config.target).abs()
        loss = config.loss_scale * loss.sum() / config.batch_size
        if loss.requires_grad:  # with K = 0 there is nothing to learn from
            loss.backward()
        return float(rewards.detach().sum()) / config.batch_size, float(loss.detach())

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


method_variant("alignprop-full", "alignprop", truncation={"mode": "full"})
method_variant("alignprop-k1", "alignprop", truncation={"mode": "fixed", "k": 1})
method_variant("alignprop-normal", "alignprop", truncation={"mode": "normal"})
method_variant("alignprop-per-step", "alignprop", truncation={"mode": "per_step"})
method_variant("alignprop-per-update", "alignprop", truncation={"group": None})
