"""NAME: say in a sentence what the method does, and where it comes from.

Write the objective here, in mathematics, with the symbols that the code below uses. As it stands
this is the smallest method that works: the last sampling step carries gradient, and the reward of
the final picture is climbed,

    max_theta  E_{c, x_T} [ R(decode(x_0(theta; x_T, c)), c) ].

Try it:    python run_benchmark.py check PATH
           python run_benchmark.py --plugin PATH --methods NAME alignprop
"""

from __future__ import annotations

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
    micro_batches,
    register_method,
    total,
)


# Every field has a default and says where its value comes from. Each becomes an option of the
# command line (--NAME.batch-size 16) and a key of a TOML file ([NAME] batch_size = 16). Its type
# also says what it may be: Count is an int of at least 1, see benchmarks/api.py for others.
@dataclass(frozen=True, kw_only=True)
class Config(Batch):
    """Settings of NAME."""

    batch_size: Count = field(default=8, metadata={"help": "samples per update [ours]"})
    micro_batch: Count = field(default=8, metadata={"help": "samples at once; changes memory only"})
    sampling_steps: Count = field(default=20, metadata={"help": "DDIM steps [ours]"})
    guidance: NotNegative = field(default=2.5, metadata={"help": "guidance scale [ours]"})
    optimizer: AdamW = field(default=AdamW(lr=1e-3), metadata={"help": "[ours]"})


@register_method("NAME")
class CLASS(Method):
    """One line that --list shows."""

    Config: ClassVar[type] = Config
    # "reward_grad" if the gradient of the reward is used, "reward" if its value is enough.
    needs: ClassVar[frozenset[str]] = frozenset({"reward_grad"})

    def __init__(self, config: Config, context: Context) -> None:
        self.config, self.context = config, context
        self.sampler = context.backbone.sampler(config.sampling_steps)
        self.optimizer = Optimizer(config.optimizer, context.backbone.parameters())

    def step(self, step: int) -> StepResult:
        """One optimizer step. The harness counts, times, evaluates and stops; you only learn."""
        config, backbone, streams = self.config, self.context.backbone, self.context.streams
        prompts = self.context.prompts(step, config.batch_size)
        last, reward = len(self.sampler) - 1, 0.0
        # This process's samples; the optimizer adds up the gradients of all processes.
        for part in micro_batches(range(config.batch_size), config.micro_batch):
            texts = [prompts[i] for i in part]
            # Random numbers come from named streams, so that runs repeat and resume exactly.
            noise = streams.normal("noise", step, part, backbone.latent_shape)
            trajectory = backbone.sample(
                self.sampler,
                texts,
                noise,  # x_T: (B, C, h, w)
                guidance=config.guidance,
                gradient=[i == last for i in range(len(self.sampler))],
            )
            images = backbone.decode(trajectory.final)  # (B, 3, H, W) in [0, 1]
            rewards = self.context.reward(images, texts)  # (B,), higher is better
            loss = -rewards.sum() / config.batch_size
            loss.backward()
            reward -= float(loss.detach())
        (reward,) = total(reward)
        return StepResult(reward=reward, loss=-reward, grad_norm=self.optimizer.step())

    # Whatever the next step depends on, besides the weights that are trained.
    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)
