r"""D3PO: preferences over denoising steps, without a reward model (Yang et al. 2023).

Two pictures of a prompt are drawn from the same noise x_T, and the reward says which is better:
h = 1 for the better, -1 for the worse, 0 for both where they tie. Each sampling step is then
compared by its ratio to the base model, as DPO compares answers,

    -log sigmoid( beta [h_a log clip(rho_a, 1 - e, 1 + e) + h_b log clip(rho_b, 1 - e, 1 + e)] ),
    rho = p_theta(x_{t-1} | x_t, c) / p_base(x_{t-1} | x_t, c),

with log-probabilities averaged over latent dimensions, and the mean over pairs and steps is
minimised. Only the order of the two rewards counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from methods import (
    AdamW,
    Count,
    NotNegative,
    Positive,
    Share,
    ZeroToOne,
    register_method,
    torch,
)
from methods._policy import Actions, PolicyMethod
from methods._rounds import Round, StepRounds, dpo_loss, preferences

if TYPE_CHECKING:
    from torch import Tensor

CODE = "d3po config/base.py"


@dataclass(frozen=True, kw_only=True)
class Config(StepRounds):
    """D3PO for SD v1.5 with LoRA, as in the authors' code."""

    samples_per_round: Count = field(default=40, metadata={"help": f"20 pairs [{CODE}]"})
    samples_per_prompt: Count = field(default=2, metadata={"help": f"a pair [{CODE}]"})
    updates_per_round: Count = field(default=20, metadata={"help": f"one per pair [{CODE}]"})
    inner_epochs: Count = field(default=1, metadata={"help": f"passes over a round [{CODE}]"})
    micro_batch: Count = field(default=2, metadata={"help": "samples at once; changes memory only"})
    sampling_steps: Count = field(default=20, metadata={"help": f"DDIM steps [{CODE}]"})
    guidance: NotNegative = field(default=5.0, metadata={"help": f"also in training [{CODE}]"})
    eta: ZeroToOne = field(default=1.0, metadata={"help": f"DDIM stochasticity [{CODE}]"})
    timestep_fraction: Share = field(
        default=1.0, metadata={"help": f"share of scored steps trained on [{CODE}]"}
    )
    beta: Positive = field(default=0.1, metadata={"help": f"sharpness of the comparison [{CODE}]"})
    clip: Positive = field(default=0.1, metadata={"help": f"e, of the ratio to the base [{CODE}]"})
    optimizer: AdamW = field(
        default=AdamW(lr=3e-5, weight_decay=1e-4, clip=1.0), metadata={"help": f"[{CODE}]"}
    )


@register_method("d3po")
class D3PO(PolicyMethod):
    """Compares the sampling steps of two pictures of a prompt."""

    Config: ClassVar[type] = Config
    unit: ClassVar[int] = 2
    compares: ClassVar[bool] = True

    def noise_group(self) -> int:
        return 2

    def advantages(self, drawn: Round) -> Tensor:
        return preferences(drawn.rewards)

    def loss(self, actions: Actions) -> Tensor:
        ratio = torch.exp(actions.log_probs - actions.reference)
        near = ratio.clamp(1 - self.config.clip, 1 + self.config.clip).log()
        losses = dpo_loss(self.config.beta * near, actions.advantages)  # (pairs, steps)
        return losses.sum() / (actions.size / 2)
