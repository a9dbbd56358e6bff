r"""Direct-Align, the first half of SRPO (Shen et al. 2025).

A picture x_0 is sampled without gradient from noise z. It is noised again with the same, known z to
the noise of some step t, and one step from there carries gradient:

    x_t  = a_t sg(x_0) + b_t z,       x_t' = step(x_t, o_theta(x_t, t, c)),
    x0_hat = (x_t' - b_t' z) / a_t',  max_theta  E [ R(decode(x0_hat), c) ].

Since the noise is known, x0_hat is the picture itself but for what one step changes of it, so that
early steps can be trained on a sharp picture, where the denoiser's own prediction would be a blur.
SRPO's second half, rewards relative to a control word, is a matter of the reward and not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    micro_batches,
    register_method,
    torch,
    total,
)

CODE = "SRPO repository"


@dataclass(frozen=True, kw_only=True)
class Config(Batch):
    """Direct-Align for SD v1.5."""

    batch_size: Count = field(
        default=32, metadata={"help": f"samples per update [ours; {CODE}: 1]"}
    )
    micro_batch: Count = field(default=8, metadata={"help": "samples at once; changes memory only"})
    sampling_steps: Count = field(default=25, metadata={"help": f"DDIM steps [{CODE}]"})
    guidance: NotNegative = field(
        default=7.5, metadata={"help": f"guidance scale [ours; {CODE}: 3.5]"}
    )
    earliest: Index = field(
        default=2, metadata={"help": f"first step that may carry gradient [{CODE}: 5 of 50]"}
    )
    latest: Index = field(
        default=12, metadata={"help": f"last step that may carry gradient [{CODE}: 25 of 50]"}
    )
    optimizer: AdamW = field(
        default=AdamW(lr=3e-4, weight_decay=1e-4, clip=0.1),
        metadata={"help": f"[{CODE}, where lr 5e-6 is for all weights; LoRA: ddpo-pytorch]"},
    )

    def resampled(self, sampling_steps: int) -> Config:
        latest = min(self.latest, sampling_steps - 2)
        steps = super().resampled(sampling_steps)
        return replace(steps, earliest=max(min(self.earliest, latest), 0), latest=max(latest, 0))


@register_method("direct-align")
class DirectAlign(Method):
    """Backpropagates the reward through one early step from a picture noised with known noise."""

    Config: ClassVar[type] = Config
    needs: ClassVar[frozenset[str]] = frozenset({"reward_grad"})

    def __init__(self, config: Config, context: Context) -> None:
        if not config.earliest <= config.latest < config.sampling_steps - 1:
            raise UserError(
                f"earliest {config.earliest} and latest {config.latest} must lie in order within "
                f"the sampling steps but the last, 0 to {config.sampling_steps - 2}"
            )
        self.config, self.context = config, context
        self.sampler = context.backbone.sampler(config.sampling_steps)
        self.optimizer = Optimizer(config.optimizer, context.backbone.parameters())

    def step(self, step: int) -> StepResult:
        config = self.config
        prompts = self.context.prompts(step, config.batch_size)
        reward = 0.0
        for part in micro_batches(range(config.batch_size), config.micro_batch):
            reward += self.backward(step, part, [prompts[i] for i in part])
        (reward,) = total(reward)
        return StepResult(reward=reward, loss=-reward, grad_norm=self.optimizer.step())

    def backward(self, step: int, part: Sequence[int], texts: list[str]) -> float:
        """Accumulate the gradient of one micro-batch: its share of the mean reward."""
        config, backbone, sampler = self.config, self.context.backbone, self.sampler
        streams = self.context.streams
        noise = streams.normal("noise", step, part, backbone.latent_shape).to(backbone.device)
        x0 = backbone.sample(sampler, texts, noise, guidance=config.guidance).final
        now = [
            streams.integer("gradient step", step, config.earliest, config.latest + 1, i)
            for i in part
        ]
        latents = each(sampler.renoised, now, x0, noise)
        timesteps = [sampler.timesteps[i] for i in now]
        output = backbone.predict(
            latents, timesteps, backbone.encode(texts), config.guidance, recompute=False
        )
        latents = each(sampler.mean, now, output, latents)
        x0_hat = each(sampler.denoised, [i + 1 for i in now], latents, noise)
        rewards = self.context.reward(backbone.decode(x0_hat), texts)
        (-rewards.sum() / config.batch_size).backward()
        return float(rewards.detach().sum()) / config.batch_size

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


def each(
    rule: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
    steps: Sequence[int],
    first: torch.Tensor,
    second: torch.Tensor,
) -> torch.Tensor:
    """A rule of the sampler for each row of a batch, with a sampling step of its own."""
    rows = zip(steps, first.split(1), second.split(1), strict=True)
    return torch.cat([rule(i, one, other) for i, one, other in rows])
