r"""DRTune: deep reward tuning through a detached network input (Wu et al. 2024).

At every sampling step the denoiser sees x_t without its gradient, while x_t itself stays connected
through the sampler's linear recursion:

    o_t = o_theta(sg(x_t), t, c),   x_{t-1} = a_t x_t + b_t o_t.

So early steps learn from the reward without a product of the denoiser's Jacobians, which is what
explodes in full backpropagation, and a backward pass ends at the weights. Only K equally spaced
steps carry gradient, the first of them drawn; the trajectory stops early, at a step drawn from the
last share of them, and the reward of the clean latents predicted there is climbed.
"""

from __future__ import annotations

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
    ZeroToOne,
    micro_batches,
    register_method,
    torch,
    total,
)

CODE = "FlowBP sd3_5_drtune.yaml"


@dataclass(frozen=True, kw_only=True)
class Config(Batch):
    """DRTune for SD v1.5."""

    batch_size: Count = field(default=64, metadata={"help": f"samples per update [{CODE}]"})
    micro_batch: Count = field(default=8, metadata={"help": "samples at once; changes memory only"})
    sampling_steps: Count = field(default=25, metadata={"help": f"DDIM steps [{CODE}]"})
    guidance: NotNegative = field(
        default=7.5, metadata={"help": f"guidance scale [ours; {CODE}: 3.5]"}
    )
    k: Count = field(default=3, metadata={"help": f"steps that carry gradient [{CODE}]"})
    early_stop: ZeroToOne = field(
        default=0.4, metadata={"help": f"last share of the steps, one of which is the end [{CODE}]"}
    )
    optimizer: AdamW = field(
        default=AdamW(lr=3e-4, weight_decay=1e-4, clip=1.0),
        metadata={"help": f"[{CODE}, where lr 1e-5 is for all weights; LoRA: ddpo-pytorch]"},
    )


@register_method("drtune")
class DRTune(Method):
    """Backpropagates the reward into a few predictions, but through none of them."""

    Config: ClassVar[type] = Config
    needs: ClassVar[frozenset[str]] = frozenset({"reward_grad"})

    def __init__(self, config: Config, context: Context) -> None:
        self.config, self.context = config, context
        self.sampler = context.backbone.sampler(config.sampling_steps)
        self.optimizer = Optimizer(config.optimizer, context.backbone.parameters())

    def chosen(self, step: int) -> list[bool]:
        """Of each sampling step that is taken, whether it carries gradient."""
        streams, steps = self.context.streams, len(self.sampler)
        late = max(1, round(self.config.early_stop * steps))
        taken = steps - streams.integer("early stop", step, 0, late)
        k = min(self.config.k, taken)
        stride = taken // k
        first = streams.integer("gradient steps", step, 0, taken - (k - 1) * stride)
        learning = range(first, first + k * stride, stride)
        return [i in learning for i in range(taken)]

    def step(self, step: int) -> StepResult:
        config, chosen = self.config, self.chosen(step)
        prompts = self.context.prompts(step, config.batch_size)
        reward = 0.0
        for part in micro_batches(range(config.batch_size), config.micro_batch):
            reward += self.backward(step, part, [prompts[i] for i in part], chosen)
        (reward,) = total(reward)
        return StepResult(
            reward=reward,
            loss=-reward,
            grad_norm=self.optimizer.step(),
            extra={"steps_taken": len(chosen)},
        )

    def backward(
        self, step: int, part: Sequence[int], texts: list[str], chosen: list[bool]
    ) -> float:
        """Accumulate the gradient of one micro-batch: its share of the mean reward."""
        config, backbone, sampler = self.config, self.context.backbone, self.sampler
        condition, x0 = backbone.encode(texts), None
        latents = self.context.streams.normal("noise", step, part, backbone.latent_shape)
        latents = latents.to(backbone.device)
        for i, learning in enumerate(chosen):
            with torch.set_grad_enabled(learning):
                output = backbone.predict(
                    latents.detach(), sampler.timesteps[i], condition, config.guidance
                )
            x0 = sampler.x0(i, output, latents)
            latents = sampler.mean(i, output, latents)
        assert x0 is not None, "no step was taken"
        rewards = self.context.reward(backbone.decode(x0), texts)
        (-rewards.sum() / config.batch_size).backward()
        return float(rewards.detach().sum()) / config.batch_size

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)
