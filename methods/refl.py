r"""Single-step backpropagation, ReFL (Xu et al. 2023, ImageReward, algorithm 1).

Denoise without gradient down to a late sampling step t, take that one step with gradient, jump to
the predicted clean latents and climb their reward:

    x0_hat = (x_t - sqrt(1 - abar_t) eps_theta(x_t, t, c)) / sqrt(abar_t)
    min_theta  lambda relu(margin - z(decode(x0_hat), c)),   z = (R - mean) / deviation,

where mean and deviation are those of the base model's pictures: the margin was published for a
reward that is standardised so, ImageReward, and in another reward's unit it would mean nothing.

The paper adds the denoising loss on real pictures (``pretrain_weight``); the released SD v1.4
code leaves it out, and so does the default. There are no real pictures here, so that loss is taken
on the model's own predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from methods import (
    AdamW,
    Batch,
    Context,
    Count,
    Finite,
    Index,
    Method,
    NotNegative,
    Optimizer,
    Positive,
    StepResult,
    UserError,
    method_variant,
    micro_batches,
    register_method,
    torch,
    total,
)

CODE = "ImageReward repository"


@dataclass(frozen=True, kw_only=True)
class Config(Batch):
    """ReFL for SD v1.5."""

    batch_size: Count = field(
        default=64, metadata={"help": "samples per update [ImageReward paper]"}
    )
    micro_batch: Count = field(default=2, metadata={"help": "samples at once; changes memory only"})
    sampling_steps: Count = field(default=40, metadata={"help": f"DDIM steps [{CODE}]"})
    guidance: NotNegative = field(default=1.0, metadata={"help": f"1 is none [{CODE}]"})
    earliest: Index = field(
        default=30, metadata={"help": f"first step that may be the one [{CODE}]"}
    )
    latest: Index = field(default=39, metadata={"help": f"last step that may be the one [{CODE}]"})
    margin: Finite | None = field(
        default=2.0,
        metadata={
            "help": "of the hinge, in deviations of the base model's pictures above their mean; "
            f"none: maximise without bound [{CODE}]"
        },
    )
    reward_weight: Positive = field(default=1e-3, metadata={"help": f"lambda [{CODE}]"})
    pretrain_weight: NotNegative = field(
        default=0.0, metadata={"help": f"of the denoising loss [{CODE}; the paper has 1]"}
    )
    optimizer: AdamW = field(
        default=AdamW(lr=3e-4, weight_decay=1e-2, clip=1.0),
        metadata={"help": f"[{CODE}, where lr 1e-5 is for all weights; LoRA: ddpo-pytorch]"},
    )

    def resampled(self, sampling_steps: int) -> Config:
        earliest, latest = min(self.earliest, sampling_steps - 2), sampling_steps - 1
        steps = super().resampled(sampling_steps)
        return replace(steps, earliest=max(earliest, 0), latest=min(self.latest, latest))


@register_method("refl")
class ReFL(Method):
    """Backpropagates the reward through one late sampling step."""

    Config: ClassVar[type] = Config
    needs: ClassVar[frozenset[str]] = frozenset({"reward_grad"})

    def __init__(self, config: Config, context: Context) -> None:
        if not 0 <= config.earliest <= config.latest < config.sampling_steps:
            raise UserError(
                f"earliest {config.earliest} and latest {config.latest} must lie in order within "
                f"the sampling steps 0 to {config.sampling_steps - 1}"
            )
        self.config, self.context = config, context
        self.sampler = context.backbone.sampler(config.sampling_steps)
        self.optimizer = Optimizer(config.optimizer, context.backbone.parameters())
        self.scale = context.scale()

    def step(self, step: int) -> StepResult:
        config, streams = self.config, self.context.streams
        chosen = streams.integer("gradient step", step, config.earliest, config.latest + 1)
        prompts = self.context.prompts(step, config.batch_size)
        reward = loss = 0.0
        for part in micro_batches(range(config.batch_size), config.micro_batch):
            scores, losses = self.backward(step, chosen, part, [prompts[i] for i in part])
            reward, loss = reward + scores, loss + losses
        reward, loss = total(reward, loss)
        return StepResult(
            reward=reward, loss=loss, grad_norm=self.optimizer.step(), extra={"chosen": chosen}
        )

    def backward(
        self, step: int, chosen: int, part: Sequence[int], prompts: list[str]
    ) -> tuple[float, float]:
        """Accumulate one micro-batch: its shares of the mean reward and of the loss."""
        config, backbone, size = self.config, self.context.backbone, self.config.batch_size
        latents = self.context.streams.normal("noise", step, part, backbone.latent_shape)
        latents, condition = latents.to(backbone.device), backbone.encode(prompts)
        with torch.no_grad():
            for i in range(chosen):
                output = backbone.predict(
                    latents, self.sampler.timesteps[i], condition, config.guidance
                )
                latents = self.sampler.mean(i, output, latents)
        output = backbone.predict(
            latents, self.sampler.timesteps[chosen], condition, config.guidance
        )
        x0 = self.sampler.x0(chosen, output, latents)
        rewards = self.context.reward(backbone.decode(x0), prompts)
        scores = (rewards - self.scale.mean) / self.scale.deviation
        hinge = -scores if config.margin is None else (config.margin - scores).relu()
        loss = config.reward_weight * hinge.sum() / size
        if config.pretrain_weight:
            loss = loss + config.pretrain_weight * self.pretraining(step, part, prompts, x0) / size
        loss.backward()
        return float(rewards.detach().sum()) / size, float(loss.detach())

    def pretraining(
        self, step: int, part: Sequence[int], prompts: list[str], x0: torch.Tensor
    ) -> torch.Tensor:
        """The denoising loss on the model's own predictions, summed over the micro-batch."""
        backbone, streams = self.context.backbone, self.context.streams
        noise = streams.normal("regression", step, part, backbone.latent_shape).to(backbone.device)
        timesteps = [
            streams.integer("timestep", step, 0, backbone.train_timesteps, i) for i in part
        ]
        noisy, target = backbone.noised(x0.detach(), noise, timesteps)
        output = backbone.predict(noisy, timesteps, backbone.encode(prompts), 1.0)
        return (output - target).square().flatten(1).mean(1).sum()

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


method_variant("refl-pretrain", "refl", pretrain_weight=1.0)
