r"""Adjoint Matching (Domingo-Enrich et al. 2025, arXiv 2409.08861).

Fine-tuning as stochastic optimal control: the target is p_base(x_0) exp(lambda z(x_0)), the base
model tilted by the reward, so that how far the model may go is in the objective. A trajectory is
drawn with noise (eta = 1). The lean adjoint is the gradient of the reward at its end, carried back
along it by the base model's steps,

    a_T = -lambda grad_x z(decode(x)),   a_k = (d mu_base(x_k) / d x_k)^T a_{k+1},

with no gradient through the trained model. Each step's control is then regressed on it:

    min_theta  E || (mu_theta(x_k) - mu_base(x_k)) / sigma_k + sigma_k a_{k+1} ||^2.

Indices count sampling steps, of which some are drawn for the loss: half of them early, half late. z
is the reward in deviations of the base model's pictures, and the norm is a mean over dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from methods import (
    AdamW,
    Batch,
    Context,
    Count,
    Method,
    NotNegative,
    Optimizer,
    StepResult,
    UserError,
    ZeroToOne,
    gather,
    micro_batches,
    register_method,
    torch,
    total,
)

CODE = "soc-fine-tuning-sd multi_prompt.yaml"
#: Where early steps end, and how slowly the bound of outliers moves (am_trainer.py).
EARLY, DECAY = 0.6, 0.9


@dataclass(frozen=True, kw_only=True)
class Config(Batch):
    """Adjoint Matching for SD v1.5."""

    batch_size: Count = field(
        default=125, metadata={"help": f"samples per update [{CODE}: 25 times 5]"}
    )
    micro_batch: Count = field(default=5, metadata={"help": f"samples at once [{CODE}]"})
    sampling_steps: Count = field(default=50, metadata={"help": f"DDIM steps [{CODE}]"})
    guidance: NotNegative = field(
        default=7.5, metadata={"help": f"guidance scale of the trajectories alone [{CODE}]"}
    )
    eta: ZeroToOne = field(
        default=1.0, metadata={"help": f"DDIM stochasticity: memoryless [{CODE}]"}
    )
    reward_weight: NotNegative = field(
        default=100.0,
        metadata={"help": f"lambda, in deviations of the base model's pictures [{CODE}; 1 to 100]"},
    )
    matched_steps: Count = field(
        default=4, metadata={"help": f"sampling steps in the loss of an update [{CODE}]"}
    )
    quantile: ZeroToOne = field(
        default=0.9, metadata={"help": f"of the errors, above which they are left out [{CODE}]"}
    )
    optimizer: AdamW = field(
        default=AdamW(lr=3e-4, weight_decay=0.0, beta2=0.95),
        metadata={"help": f"[{CODE}, where lr 3e-6 is for all weights; LoRA: ddpo-pytorch]"},
    )


@register_method("adjoint-matching")
class AdjointMatching(Method):
    """Regresses each step's control on the reward's gradient, carried back by the base model."""

    Config: ClassVar[type] = Config
    needs: ClassVar[frozenset[str]] = frozenset({"reward_grad"})

    def __init__(self, config: Config, context: Context) -> None:
        self.config, self.context = config, context
        self.sampler = context.backbone.sampler(config.sampling_steps, config.eta)
        if not self.sampler.scored:
            raise UserError(f"eta is {config.eta}; without noise there is nothing to control")
        if config.matched_steps < 2:
            raise UserError(f"matched_steps is {config.matched_steps}; one early and one late step")
        with context.backbone.adapting(False):
            pass  # now, and not at the first step, it says that there is no base model
        self.optimizer = Optimizer(config.optimizer, context.backbone.parameters())
        self.scale = context.scale()
        self.bound = math.inf  # a moving average of the errors' quantile

    def matched(self, step: int) -> list[int]:
        """The sampling steps in the loss of an update: half of them early, half late.

        None that is nearly deterministic: its sigma would drown the others.
        """
        streams, late_from = self.context.streams, round(EARLY * len(self.sampler))
        early = [k for k in self.sampler.scored if k < late_from]
        late = [k for k in self.sampler.scored if k >= late_from]
        half = self.config.matched_steps // 2

        def drawn(pool: list[int], count: int, number: int) -> list[int]:
            order = streams.permutation("matched steps", step, len(pool), number)
            return [pool[i] for i in order[:count]]

        return sorted(drawn(early, half, 0) + drawn(late, self.config.matched_steps - half, 1))

    def step(self, step: int) -> StepResult:
        config, matched = self.config, self.matched(step)
        prompts = self.context.prompts(step, config.batch_size)
        reward, errors = 0.0, list[torch.Tensor]()
        for part in micro_batches(range(config.batch_size), config.micro_batch):
            score, found = self.backward(step, part, [prompts[i] for i in part], matched)
            reward, errors = reward + score, [*errors, *found]
        (reward,), everyone = total(reward), gather(errors)
        kept = everyone.sqrt() <= self.bound
        quantile = float(everyone.sqrt().quantile(config.quantile))
        first = math.isinf(self.bound)
        self.bound = quantile if first else DECAY * self.bound + (1 - DECAY) * quantile
        return StepResult(
            reward=reward,
            loss=float((kept * everyone).mean()),
            grad_norm=self.optimizer.step(),
            extra={"kept": float(kept.double().mean())},
        )

    def backward(
        self, step: int, part: Sequence[int], texts: list[str], matched: list[int]
    ) -> tuple[float, list[torch.Tensor]]:
        """Accumulate one micro-batch: its share of the mean reward, errors (B,) of each step."""
        config, backbone, streams = self.config, self.context.backbone, self.context.streams
        shape, condition = backbone.latent_shape, backbone.encode(texts)
        trajectory = backbone.sample(
            self.sampler,
            texts,
            streams.normal("noise", step, part, shape),
            guidance=config.guidance,
            step_noise=streams.normal("eta", step, part, (len(self.sampler), *shape)),
        )
        final = trajectory.final.detach().requires_grad_()
        rewards = self.context.reward(backbone.decode(final), texts)
        (slope,) = torch.autograd.grad(rewards.sum(), final)
        adjoint = -config.reward_weight / self.scale.deviation * slope
        errors = []
        for k in reversed(range(matched[0], len(self.sampler))):
            latents = trajectory.latents[k]
            base, before = self.base_step(k, latents, adjoint, condition, k > matched[0])
            if k in matched:
                sigma = self.sampler.std(k)
                control = (self.mean(k, latents, condition) - base) / sigma
                error = (control + sigma * adjoint).square().flatten(1).mean(1)
                kept = error.detach().sqrt() <= self.bound
                ((kept * error).sum() / config.batch_size / len(matched)).backward()
                errors.append(error.detach())
            adjoint = before
        return float(rewards.detach().sum()) / config.batch_size, errors

    def mean(self, k: int, latents: torch.Tensor, condition: Any) -> torch.Tensor:
        """Mean of the next latents, without guidance."""
        timestep = self.sampler.timesteps[k]
        output = self.context.backbone.predict(latents, timestep, condition, 1.0, recompute=False)
        return self.sampler.mean(k, output, latents)

    def base_step(
        self, k: int, latents: torch.Tensor, adjoint: torch.Tensor, condition: Any, back: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The base model's mean after step ``k``; with ``back`` the adjoint before it, too."""
        with self.context.backbone.adapting(False), torch.set_grad_enabled(back):
            latents = latents.detach().requires_grad_(back)
            mean = self.mean(k, latents, condition)
            if back:
                (adjoint,) = torch.autograd.grad(mean, latents, adjoint)
        return mean.detach(), adjoint

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "bound": self.bound}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.bound = state["bound"]
