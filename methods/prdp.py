r"""PRDP: predicting the difference of two rewards (Deng et al. 2024, arXiv 2402.08714).

The policy that maximises E[z] - beta KL to the base model satisfies, for any two trajectories a and
b of a prompt, beta [l(a) - l(b)] = z_a - z_b with l = sum_t log p_theta / p_base. So this is
regressed,

    max over l' in (l, clip(l)) of  ( beta [l'(a) - l'(b)] - (z_a - z_b) )^2,

where clip(l) holds the log-ratio of each sampling step within e of what it was when the round was
drawn: the proximal update. The larger error is a bound that gives no reason to go further than
that. z is the reward in deviations of the base model's pictures, so that beta has no unit;
log-probabilities are averaged over latent dimensions as in DDPO.

There is no official code. The rule is the paper's as others quote it, and its settings here are
ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from methods import (
    AdamW,
    Context,
    Count,
    NotNegative,
    Positive,
    Share,
    ZeroToOne,
    register_method,
    torch,
)
from methods._policy import Actions, PolicyMethod
from methods._rounds import Round, StepRounds

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Config(StepRounds):
    """PRDP for SD v1.5 with LoRA."""

    samples_per_round: Count = field(
        default=256, metadata={"help": "samples per round [ddpo-pytorch]"}
    )
    samples_per_prompt: Count = field(default=2, metadata={"help": "a pair [paper]"})
    updates_per_round: Count = field(default=2, metadata={"help": "optimizer steps [ddpo-pytorch]"})
    inner_epochs: Count = field(default=1, metadata={"help": "passes over a round [ddpo-pytorch]"})
    micro_batch: Count = field(default=2, metadata={"help": "samples at once; changes memory only"})
    sampling_steps: Count = field(default=50, metadata={"help": "DDIM steps [ddpo-pytorch]"})
    guidance: NotNegative = field(default=5.0, metadata={"help": "also in training [ddpo-pytorch]"})
    eta: ZeroToOne = field(default=1.0, metadata={"help": "DDIM stochasticity [ddpo-pytorch]"})
    timestep_fraction: Share = field(
        default=1.0, metadata={"help": "share of scored steps whose log-ratios are summed [paper]"}
    )
    beta: Positive = field(default=1.0, metadata={"help": "weight of the KL in the target [ours]"})
    clip: Positive = field(
        default=1e-4, metadata={"help": "e, of each step's log-ratio [paper, as quoted by others]"}
    )
    optimizer: AdamW = field(
        default=AdamW(lr=3e-4, weight_decay=1e-4, clip=1.0), metadata={"help": "[ddpo-pytorch]"}
    )


@register_method("prdp")
class PRDP(PolicyMethod):
    """Regresses the difference of two pictures' rewards on that of their log-ratios."""

    Config: ClassVar[type] = Config
    unit: ClassVar[int] = 2
    compares: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.scale = context.scale()

    def advantages(self, drawn: Round) -> Tensor:
        return (drawn.rewards - self.scale.mean) / self.scale.deviation

    def loss(self, actions: Actions) -> Tensor:
        now = actions.log_probs - actions.reference  # (pictures, steps)
        old = actions.old - actions.reference
        near = torch.clamp(now, old - self.config.clip, old + self.config.clip)
        z = actions.advantages[:, 0]
        errors = [
            (self.config.beta * difference(ratios.sum(1)) - difference(z)).square()
            for ratios in (now, near)
        ]
        return torch.maximum(*errors).sum() / (self.config.update_size / 2)


def difference(values: Tensor) -> Tensor:
    """(pairs,) between neighbours."""
    return values[0::2] - values[1::2]
