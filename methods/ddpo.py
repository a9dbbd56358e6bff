r"""DDPO: denoising as a Markov decision process (Black et al. 2023).

A sampling round draws trajectories with the stochastic sampler (eta 1) and scores the pictures.
Each sampling step is an action whose log-probability is known, and the clipped surrogate of PPO is
minimised over all of them,

    mean_{i,t} max(-A_i rho_it, -A_i clip(rho_it, 1 - c, 1 + c)),
    rho_it = exp(log p_theta(x_{t-1} | x_t, c) - log p_old(x_{t-1} | x_t, c)),

where A_i is the reward normalised by its prompt's running statistics, clipped to [-5, 5], and the
log-probability is averaged over latent dimensions (ddpo-pytorch, ``ddim_with_logprob.py``). The
mean is over the sampling steps that the sampler scores: all that have a density, without such as
are nearly deterministic, whose noise would drown the others. With ``clip = None`` it is the
score-function estimator, -A_i log p (DDPO-SF).

How a round is drawn and its actions are replayed stands in ``_rounds.py`` and ``_policy.py``.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from methods import (
    AdamW,
    Context,
    Count,
    NotNegative,
    Positive,
    Share,
    UserError,
    ZeroToOne,
    method_variant,
    register_method,
    torch,
)
from methods._policy import Actions, PolicyMethod, clipped_surrogate
from methods._rounds import Round, StepRounds

if TYPE_CHECKING:
    from torch import Tensor

CODE = "ddpo-pytorch"


@dataclass(frozen=True, kw_only=True)
class Config(StepRounds):
    """DDPO for SD v1.5 with LoRA, as in ddpo-pytorch."""

    samples_per_round: Count = field(default=256, metadata={"help": f"samples per round [{CODE}]"})
    samples_per_prompt: Count = field(
        default=1, metadata={"help": f"pictures of each prompt drawn [1: {CODE}; more: ours]"}
    )
    updates_per_round: Count = field(
        default=2, metadata={"help": f"optimizer steps per pass [{CODE}]"}
    )
    inner_epochs: Count = field(default=1, metadata={"help": f"passes over a round [{CODE}]"})
    micro_batch: Count = field(default=8, metadata={"help": "samples at once; changes memory only"})
    sampling_steps: Count = field(default=50, metadata={"help": f"DDIM steps [{CODE}]"})
    guidance: NotNegative = field(default=5.0, metadata={"help": f"also in training [{CODE}]"})
    eta: ZeroToOne = field(default=1.0, metadata={"help": f"DDIM stochasticity [{CODE}]"})
    clip: Positive | None = field(
        default=1e-4, metadata={"help": f"ratio clip; None: DDPO-SF [{CODE}]"}
    )
    max_advantage: Positive = field(default=5.0, metadata={"help": f"advantage clip [{CODE}]"})
    timestep_fraction: Share = field(
        default=1.0, metadata={"help": f"share of scored steps trained on [{CODE}]"}
    )
    buffer_size: Count = field(default=32, metadata={"help": f"rewards kept per prompt [{CODE}]"})
    buffer_min: Count = field(
        default=16, metadata={"help": f"fewer: statistics of the round [{CODE}]"}
    )
    optimizer: AdamW = field(
        default=AdamW(lr=3e-4, weight_decay=1e-4, clip=1.0), metadata={"help": f"[{CODE}]"}
    )


class PromptStatistics:
    """Normalises rewards by the recent mean and deviation of their prompt (ddpo-pytorch)."""

    def __init__(self, size: int, minimum: int) -> None:
        self.minimum = minimum
        self.recent: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=size))

    def advantages(self, prompts: list[str], rewards: Tensor) -> Tensor:
        """(B,) from (B,); the current rewards join the buffers first."""
        values = rewards.double()
        for prompt, value in zip(prompts, values.tolist(), strict=True):
            self.recent[prompt].append(value)
        result = torch.empty_like(values)
        for i, prompt in enumerate(prompts):
            known = torch.tensor(self.recent[prompt], dtype=torch.float64)
            known = known if len(known) >= self.minimum else values
            result[i] = (values[i] - known.mean()) / (known.std(correction=0) + 1e-6)
        return result.float()


@register_method("ddpo")
class DDPO(PolicyMethod):
    """Policy gradient over sampling steps, with importance sampling and clipping."""

    Config: ClassVar[type] = Config

    def __init__(self, config: Config, context: Context) -> None:
        if config.buffer_min > config.buffer_size:
            raise UserError(
                f"buffer_min is {config.buffer_min}, but only buffer_size, {config.buffer_size}, "
                "rewards are kept per prompt"
            )
        super().__init__(config, context)
        self.statistics = PromptStatistics(config.buffer_size, config.buffer_min)

    def advantages(self, drawn: Round) -> Tensor:
        limit = self.config.max_advantage
        return self.statistics.advantages(drawn.prompts, drawn.rewards).clamp(-limit, limit)

    def loss(self, actions: Actions) -> Tensor:
        clip, advantages = self.config.clip, actions.advantages
        if clip is None:
            return (-advantages * actions.log_probs).sum() / actions.size
        return clipped_surrogate(actions.ratio, advantages, clip).sum() / actions.size

    def state_dict(self) -> dict[str, Any]:
        recent = {prompt: list(values) for prompt, values in self.statistics.recent.items()}
        return {**super().state_dict(), "recent": recent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.statistics.recent.clear()
        for prompt, values in state["recent"].items():
            self.statistics.recent[prompt].extend(values)


method_variant("ddpo-sf", "ddpo", clip=None)
