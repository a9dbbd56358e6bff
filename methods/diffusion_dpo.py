r"""Diffusion-DPO on the model's own pairs (Wallace et al. 2023, arXiv 2311.12908).

Two pictures of a prompt are drawn, and the reward says which is the winner. Both are noised to the
same timestep with the same noise, and the model should denoise the winner better than the base
model does, by more than the loser,

    -log sigmoid( -beta/2 [(e_w - e_w,base) - (e_l - e_l,base)] ),   e = mean ||eps - eps_theta||^2,

without guidance, in the model's own training target (noise, v or velocity). There are no ratios,
no stochastic sampler and no trajectories: only pictures and their order. The paper trains on human
preferences collected beforehand; here each round asks the reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from methods import (
    AdamW,
    Count,
    NotNegative,
    Positive,
    ZeroToOne,
    register_method,
    torch,
)
from methods._rounds import Round, RoundMethod, Rounds, dpo_loss, preferences

if TYPE_CHECKING:
    from torch import Tensor

CODE = "DiffusionDPO"


@dataclass(frozen=True, kw_only=True)
class Config(Rounds):
    """Diffusion-DPO for SD v1.5 with LoRA."""

    samples_per_round: Count = field(default=256, metadata={"help": "128 pairs per round [ours]"})
    samples_per_prompt: Count = field(default=2, metadata={"help": f"a pair [{CODE}]"})
    updates_per_round: Count = field(
        default=4,
        metadata={"help": "optimizer steps per pass, 32 pairs each [diffusers' LoRA code]"},
    )
    inner_epochs: Count = field(default=4, metadata={"help": "passes over a round [ours]"})
    micro_batch: Count = field(default=8, metadata={"help": "samples at once; changes memory only"})
    sampling_steps: Count = field(default=50, metadata={"help": "DDIM steps [ours]"})
    guidance: NotNegative = field(default=7.5, metadata={"help": "in sampling only [ours]"})
    eta: ZeroToOne = field(default=0.0, metadata={"help": "DDIM stochasticity [ours]"})
    beta: Positive = field(default=5000.0, metadata={"help": f"strength of the KL [{CODE}]"})
    optimizer: AdamW = field(
        default=AdamW(lr=1e-5, weight_decay=1e-2, clip=1.0),
        metadata={"help": f"[{CODE}, where lr 2e-5 is for all weights; LoRA: diffusers' code]"},
    )


@register_method("diffusion-dpo")
class DiffusionDPO(RoundMethod):
    """Denoises the better of two pictures better than the base model does."""

    Config: ClassVar[type] = Config
    unit: ClassVar[int] = 2
    trajectories: ClassVar[bool] = False

    def advantages(self, drawn: Round) -> Tensor:
        return preferences(drawn.rewards)

    def learn(self, step: int, phase: int) -> tuple[float, dict[str, float]]:
        loss = 0.0
        for rows in self.parts(self.batch(step, phase)):
            share = self.loss(step, rows)
            share.backward()
            loss += float(share.detach())
        return loss, {}

    def loss(self, step: int, rows: Sequence[int]) -> Tensor:
        """What these pairs add to the mean loss of the update."""
        backbone, streams, data = self.context.backbone, self.context.streams, self.round
        assert data is not None
        pairs = [row - row % 2 for row in rows]  # both are noised alike
        noise = streams.normal("renoising", step, pairs, backbone.latent_shape)
        timesteps = [
            streams.integer("timestep", step, 0, backbone.train_timesteps, pair) for pair in pairs
        ]
        x0, noise = data.latents[rows, -1].to(backbone.device), noise.to(backbone.device)
        noisy, target = backbone.noised(x0, noise, timesteps)
        condition = backbone.encode([data.prompts[row] for row in rows])

        def errors() -> Tensor:
            output = backbone.predict(noisy, timesteps, condition, 1.0, recompute=False)
            return (output - target).square().flatten(1).mean(1)

        with torch.no_grad(), backbone.adapting(False):
            base = errors()
        gains = -self.config.beta / 2 * (errors() - base)
        losses = dpo_loss(gains, data.advantages[rows].to(base))
        return losses.sum() / (self.config.update_size / 2)
