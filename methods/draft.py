r"""DRaFT: direct reward fine-tuning through the last sampling steps (Clark et al. 2024).

DRaFT-K climbs the reward of the final picture with gradient through the last K sampling steps:

    max_theta  E_{c, x_T} [ R(decode(x_0(theta; x_K, c)), c) ],   x_T ... x_K without gradient.

DRaFT-LV lowers the variance of K = 1, whose gradient is cheap. Clean latents are noised again to
the noise of the last step, n times, and each time that one step is taken with gradient,

    x_1 = a_1 sg(x_0) + b_1 z,   z ~ N(0, 1),

so that the mean reward of 1 + n pictures is climbed for one denoising trajectory. DRaFT+ (NVIDIA)
keeps the K predictions near those of the base model, + kl mean || eps_theta - eps_base ||^2.
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
    Index,
    Method,
    NotNegative,
    Optimizer,
    StepResult,
    UserError,
    method_variant,
    micro_batches,
    register_method,
    torch,
    total,
)

CODE = "NeMo-Aligner draftp_sd.yaml"


@dataclass(frozen=True, kw_only=True)
class Config(Batch):
    """DRaFT for SD v1.5."""

    batch_size: Count = field(
        default=16, metadata={"help": f"samples per update [{CODE}: 4 or 16]"}
    )
    micro_batch: Count = field(default=4, metadata={"help": "samples at once; changes memory only"})
    sampling_steps: Count = field(default=50, metadata={"help": f"DDIM steps [{CODE}]"})
    guidance: NotNegative = field(default=7.5, metadata={"help": f"guidance scale [{CODE}]"})
    k: Count = field(default=1, metadata={"help": f"last steps that carry gradient [{CODE}]"})
    renoised: Index = field(
        default=0, metadata={"help": "n, pictures drawn again from each x_0 [DRaFT-LV: 2]"}
    )
    kl: NotNegative = field(
        default=0.0, metadata={"help": f"weight of the distance to the base model [{CODE}: 1]"}
    )
    optimizer: AdamW = field(
        default=AdamW(lr=1e-4, weight_decay=0.0, clip=10.0), metadata={"help": f"[{CODE}]"}
    )

    def resampled(self, sampling_steps: int) -> Config:
        return replace(super().resampled(sampling_steps), k=min(self.k, sampling_steps))


@register_method("draft-k")
class DRaFT(Method):
    """Backpropagates the reward through the last K sampling steps, K constant."""

    Config: ClassVar[type] = Config
    needs: ClassVar[frozenset[str]] = frozenset({"reward_grad"})

    def __init__(self, config: Config, context: Context) -> None:
        if config.k > config.sampling_steps:
            raise UserError(f"k is {config.k}; choose 1 to sampling_steps, {config.sampling_steps}")
        if config.kl:
            with context.backbone.adapting(False):
                pass  # now, and not at the first step, it says that there is no base model
        self.config, self.context = config, context
        self.sampler = context.backbone.sampler(config.sampling_steps)
        self.optimizer = Optimizer(config.optimizer, context.backbone.parameters())

    def step(self, step: int) -> StepResult:
        config = self.config
        prompts = self.context.prompts(step, config.batch_size)
        reward = distance = 0.0
        for part in micro_batches(range(config.batch_size), config.micro_batch):
            scores, far = self.backward(step, part, [prompts[i] for i in part])
            reward, distance = reward + scores, distance + far
        reward, distance = total(reward, distance)
        return StepResult(
            reward=reward,
            loss=config.kl * distance - reward,
            grad_norm=self.optimizer.step(),
            extra={"distance": distance} if config.kl else {},
        )

    def backward(self, step: int, part: Sequence[int], texts: list[str]) -> tuple[float, float]:
        """Accumulate one micro-batch: its shares of the mean reward and distance to the base."""
        config, backbone, streams = self.config, self.context.backbone, self.context.streams
        last, condition = len(self.sampler) - 1, backbone.encode(texts)
        latents = streams.normal("noise", step, part, backbone.latent_shape).to(backbone.device)
        distance = torch.zeros(len(texts), device=backbone.device)
        for i, timestep in enumerate(self.sampler.timesteps):
            learning = i > last - config.k
            with torch.set_grad_enabled(learning):
                output = backbone.predict(latents, timestep, condition, config.guidance)
            if learning and config.kl:
                with torch.no_grad(), backbone.adapting(False):
                    base = backbone.predict(latents, timestep, condition, config.guidance)
                off = [self.sampler.noise(i, o, latents) for o in (output, base)]
                distance = distance + (off[0] - off[1]).square().flatten(1).mean(1) / config.k
            latents = self.sampler.mean(i, output, latents)
        reward = self.climb(latents, texts, config.kl * distance)
        x0 = latents.detach()
        for n in range(config.renoised):
            noise = streams.normal(f"renoised {n}", step, part, backbone.latent_shape)
            latents = self.sampler.renoised(last, x0, noise.to(x0))
            output = backbone.predict(
                latents, self.sampler.timesteps[last], condition, config.guidance, recompute=False
            )
            reward += self.climb(self.sampler.mean(last, output, latents), texts)
        return reward, float(distance.detach().sum()) / config.batch_size

    def climb(
        self, latents: torch.Tensor, texts: list[str], cost: torch.Tensor | float = 0.0
    ) -> float:
        """Accumulate the gradient of these pictures' share of the loss; their share of the mean."""
        rewards = self.context.reward(self.context.backbone.decode(latents), texts)
        share = rewards / (1 + self.config.renoised)
        ((cost - share).sum() / self.config.batch_size).backward()
        return float(share.detach().sum()) / self.config.batch_size

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


method_variant("draft-lv", "draft-k", renoised=2)
