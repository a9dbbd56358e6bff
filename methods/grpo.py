r"""GRPO: group-relative policy optimisation (DanceGRPO, arXiv 2505.07818; Flow-GRPO, 2505.05470).

DDPO with a baseline that needs no memory. The G pictures of a prompt start from the same noise x_T
and part on the way, by the noise of the stochastic sampler. Each is compared with its group,

    A_i = (R_i - mean_group R) / std_group R,    clipped to [-5, 5],
    mean_{i,t} max(-A_i rho_it, -A_i clip(rho_it, 1 - c, 1 + c)) + kl KL_it,
    KL_it = mean ||mu_theta(x_t) - mu_base(x_t)||^2 / (2 sigma_t^2),

so that neither the scale nor the level of the reward matters. rho is DDPO's ratio and KL the
divergence of a sampling step from the base model's, averaged over latent dimensions as the
log-probability is.

MixGRPO (Li et al. 2025, ``window``) has noise, and learns, in a few neighbouring sampling steps
only, and is deterministic elsewhere. The window stays for some rounds, moves on by one step, and
begins again after the last.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from methods import (
    AdamW,
    Context,
    Count,
    NotNegative,
    Positive,
    Sampler,
    Share,
    UserError,
    ZeroToOne,
    method_variant,
    register_method,
)
from methods._policy import Actions, PolicyMethod, clipped_surrogate
from methods._rounds import Round, StepRounds, group_advantages

if TYPE_CHECKING:
    from torch import Tensor

CODE = "DanceGRPO config_sd"
FLOW = "flow_grpo config"
MIX = "MixGRPO"


@dataclass(frozen=True, kw_only=True)
class Config(StepRounds):
    """GRPO for SD v1.4, as in DanceGRPO."""

    samples_per_round: Count = field(
        default=512, metadata={"help": f"32 prompts on 8 GPUs [{CODE}, hpsv2]"}
    )
    samples_per_prompt: Count = field(default=16, metadata={"help": f"the group [{CODE}]"})
    updates_per_round: Count = field(default=2, metadata={"help": f"optimizer steps [{CODE}]"})
    inner_epochs: Count = field(default=1, metadata={"help": f"passes over a round [{CODE}]"})
    micro_batch: Count = field(default=4, metadata={"help": "samples at once; changes memory only"})
    sampling_steps: Count = field(default=50, metadata={"help": f"DDIM steps [{CODE}]"})
    guidance: NotNegative = field(default=5.0, metadata={"help": f"also in training [{CODE}]"})
    eta: ZeroToOne = field(default=1.0, metadata={"help": f"DDIM stochasticity [{CODE}]"})
    clip: Positive = field(default=1e-4, metadata={"help": f"ratio clip [{CODE}]"})
    max_advantage: Positive = field(default=5.0, metadata={"help": f"advantage clip [{CODE}]"})
    timestep_fraction: Share = field(
        default=1.0, metadata={"help": f"share of scored steps trained on [{CODE}]"}
    )
    kl: NotNegative = field(default=0.0, metadata={"help": f"KL's weight [{CODE}; {FLOW}: 0.04]"})
    window: Count | None = field(
        default=None, metadata={"help": f"stochastic steps; none: all [{CODE}; {MIX}: 4]"}
    )
    window_rounds: Count = field(
        default=25, metadata={"help": f"rounds before the window moves by one step [{MIX}]"}
    )
    optimizer: AdamW = field(
        default=AdamW(lr=3e-4, weight_decay=1e-4, clip=1.0),
        metadata={"help": f"[{CODE}, where lr 1e-5 is for all weights; LoRA: {FLOW}]"},
    )

    def resampled(self, sampling_steps: int) -> Config:
        window = self.window and max(1, round(self.window * sampling_steps / self.sampling_steps))
        return replace(super().resampled(sampling_steps), window=window)


@register_method("grpo")
class GRPO(PolicyMethod):
    """Policy gradient over sampling steps, each picture compared with others of its prompt."""

    Config: ClassVar[type] = Config

    def __init__(self, config: Config, context: Context) -> None:
        if config.samples_per_prompt < 2:
            raise UserError("samples_per_prompt must be at least 2: pictures are compared")
        super().__init__(config, context)

    def noise_group(self) -> int:
        return self.config.samples_per_prompt

    def sampler_at(self, step: int) -> Sampler:
        config, sampler = self.config, super().sampler_at(step)
        if config.window is None:
            return sampler
        steps = sampler.scored
        if not 0 < config.window <= len(steps):
            raise UserError(f"window is {config.window}; choose 1 to {len(steps)} sampling steps")
        moves = step // self.phases // config.window_rounds
        first = moves % (len(steps) - config.window + 1)
        return self.context.backbone.windowed(sampler, steps[first : first + config.window])

    def advantages(self, drawn: Round) -> Tensor:
        limit = self.config.max_advantage
        return group_advantages(drawn.rewards, self.config.samples_per_prompt).clamp(-limit, limit)

    def keeps(self) -> bool:
        return super().keeps() and not self.config.kl  # of what is kept there are no outputs

    def loss(self, actions: Actions) -> Tensor:
        surrogate = clipped_surrogate(actions.ratio, actions.advantages, self.config.clip).sum()
        if self.config.kl:
            surrogate = surrogate + self.config.kl * self.divergence(actions).sum()
        return surrogate / actions.size

    def divergence(self, actions: Actions) -> Tensor:
        """(B,) of one sampling step from the base model's."""
        replay = actions.replay
        assert replay is not None
        now, base = (
            self.sampler.mean(replay.i, output, replay.latents)
            for output in (replay.output, self.base_output(replay, actions.rows))
        )
        return (now - base).square().flatten(1).mean(1) / (2 * self.sampler.std(replay.i) ** 2)


method_variant("mixgrpo", "grpo", window=4)
