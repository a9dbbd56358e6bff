r"""DiffusionNFT: negative-aware fine-tuning on the forward process (Zheng et al. 2025, 2509.16117).

The old policy draws pictures with any sampler, here without noise. A picture x0 with advantage A
is good with probability q = clip(A / 5, -1, 1) / 2 + 1/2. It is noised to x_t at every sampling
step, and the model is moved towards it and away from it at once, by an implicit positive and an
implicit negative policy on either side of the old one,

    v+ = beta v_theta + (1 - beta) v_old,    v- = (1 + beta) v_old - beta v_theta,
    L = 5/beta [ q ||x+ - x0||^2 / w+ + (1 - q) ||x- - x0||^2 / w- ] + kl ||v_theta - v_base||^2,

where x+ and x- are the clean latents that v+ and v- predict, and w = mean |x - x0|, no less than
1e-5 and without gradient. There is no log-probability and no ratio, and the sampler is free. After
each round

    v_old <- d v_old + (1 - d) v_theta,    d = min(0.001 step, 0.5).

A is the reward above its prompt's mean, in deviations of all pictures of the round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from methods import (
    AdamW,
    Context,
    Count,
    NotNegative,
    Positive,
    Share,
    StepResult,
    ZeroToOne,
    register_method,
    torch,
)
from methods._rounds import Round, RoundMethod, StepRounds, group_advantages

if TYPE_CHECKING:
    from torch import Tensor

CODE = "DiffusionNFT config/nft.py"


@dataclass(frozen=True, kw_only=True)
class Config(StepRounds):
    """DiffusionNFT with LoRA, as for SD 3.5 in the authors' code."""

    samples_per_round: Count = field(default=1152, metadata={"help": f"48 prompts [{CODE}]"})
    samples_per_prompt: Count = field(default=24, metadata={"help": f"pictures of each [{CODE}]"})
    updates_per_round: Count = field(default=1, metadata={"help": f"optimizer steps [{CODE}]"})
    inner_epochs: Count = field(default=1, metadata={"help": f"passes over a round [{CODE}]"})
    micro_batch: Count = field(default=9, metadata={"help": "samples at once; changes memory only"})
    sampling_steps: Count = field(default=10, metadata={"help": f"without noise [{CODE}]"})
    guidance: NotNegative = field(default=1.0, metadata={"help": f"1 is none [{CODE}]"})
    eta: ZeroToOne = field(default=0.0, metadata={"help": f"stochasticity of the sampler [{CODE}]"})
    timestep_fraction: Share = field(
        default=1.0, metadata={"help": f"share of the sampling steps trained on [{CODE}: 0.99]"}
    )
    beta: Positive = field(
        default=1.0, metadata={"help": f"size of the implicit step [{CODE}; some rewards: 0.1]"}
    )
    max_advantage: Positive = field(default=5.0, metadata={"help": f"advantage clip [{CODE}]"})
    kl: NotNegative = field(default=1e-4, metadata={"help": f"weight of the KL [{CODE}]"})
    decay_rate: NotNegative = field(
        default=0.001, metadata={"help": f"growth of d per optimizer step [{CODE}]"}
    )
    max_decay: ZeroToOne = field(default=0.5, metadata={"help": f"largest d [{CODE}]"})
    optimizer: AdamW = field(
        default=AdamW(lr=3e-4, weight_decay=1e-4, clip=1.0), metadata={"help": f"[{CODE}]"}
    )


@register_method("diffusion-nft")
class DiffusionNFT(RoundMethod):
    """Moves the model towards good pictures and away from bad ones, on re-noised latents."""

    Config: ClassVar[type] = Config
    trajectories: ClassVar[bool] = False

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.trained = config.trained(len(self.sampler))
        self.old = [p.detach().clone() for p in context.backbone.parameters()]

    def sample(self, step: int) -> Round:
        with self.context.backbone.with_weights(self.old):
            return super().sample(step)

    def advantages(self, drawn: Round) -> Tensor:
        return group_advantages(drawn.rewards, self.config.samples_per_prompt, spread="round")

    def step(self, step: int) -> StepResult:
        result = super().step(step)
        if (step + 1) % self.phases == 0:
            decay = min(self.config.decay_rate * (step + 1), self.config.max_decay)
            with torch.no_grad():
                for old, new in zip(self.old, self.context.backbone.parameters(), strict=True):
                    old.mul_(decay).add_((1 - decay) * new.to(old))
        return result

    def learn(self, step: int, phase: int) -> tuple[float, dict[str, float]]:
        loss, streams, steps = 0.0, self.context.streams, len(self.sampler)
        chosen = streams.permutation("timesteps", step, steps)[: self.trained]
        for rows in self.parts(self.batch(step, phase)):
            shape = (steps, *self.context.backbone.latent_shape)
            noise = streams.normal("renoising", step, rows, shape)
            for i in chosen:
                share = self.loss(i, rows, noise[:, i])
                share.backward()
                loss += float(share.detach())
        return loss, {}

    def loss(self, i: int, rows: Sequence[int], noise: Tensor) -> Tensor:
        """What some pictures at sampling step ``i`` add to the mean loss of the update."""
        config, backbone, data = self.config, self.context.backbone, self.round
        assert data is not None
        x0 = data.latents[rows, -1].to(backbone.device)
        noisy = self.sampler.renoised(i, x0, noise.to(backbone.device))
        condition = backbone.encode([data.prompts[row] for row in rows])

        def predict() -> Tensor:
            return backbone.predict(
                noisy, self.sampler.timesteps[i], condition, config.guidance, recompute=False
            )

        with torch.no_grad():
            with backbone.with_weights(self.old):
                old = predict()
            with backbone.adapting(not config.kl):
                base = predict() if config.kl else None
        output = predict()
        towards = config.beta * output + (1 - config.beta) * old
        away = (1 + config.beta) * old - config.beta * output
        limit = config.max_advantage
        good = ((data.advantages[rows] / limit).clamp(-1, 1) / 2 + 0.5).to(x0)
        losses = good * weighted_error(self.sampler.x0(i, towards, noisy), x0)
        losses = losses + (1 - good) * weighted_error(self.sampler.x0(i, away, noisy), x0)
        losses = limit / config.beta * losses
        if base is not None:
            losses = losses + config.kl * (output - base).square().flatten(1).mean(1)
        return losses.sum() / (config.update_size * self.trained)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "old": self.old}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.old = [value.to(self.context.backbone.device) for value in state["old"]]


def weighted_error(predicted: Tensor, x0: Tensor) -> Tensor:
    """(B,) squared error over the mean absolute one, which carries no gradient."""
    error = (predicted - x0).flatten(1)
    return error.square().mean(1) / error.detach().abs().mean(1).clamp(min=1e-5)
