r"""DPOK: online policy gradient with a KL to the base model (Fan et al. 2023, arXiv 2305.16381).

As in DDPO each sampling step is an action. Its advantage is measured against a value function of
the state, V(x_t, t, c), which is regressed on the rewards of the round; the ratio is clamped
outright, so that an action outside the trust region has no gradient at all; and the prediction is
held near the base model's,

    mean_{i,t}  -w A_it clip(rho_it, 1 - c, 1 + c) + kl ||eps_theta(x_t) - eps_base(x_t)||^2,
    A_it = z_i - V(x_t, t, c_i),     V = argmin mean_{i,t} (V(x_t, t, c_i) - z_i)^2.

z is the reward in deviations of the base model's pictures above their mean, as the paper's
ImageReward is. V is a small network of x_t and the mean of the text's embeddings with a factor per
sampling step, the code's ``ValueMulti``. The ledger counts and prices its passes like any other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from methods import (
    AdamW,
    Context,
    Count,
    NotNegative,
    Optimizer,
    Positive,
    Share,
    ZeroToOne,
    gather,
    register_method,
    torch,
)
from methods._policy import Actions, PolicyMethod
from methods._rounds import Round, StepRounds

if TYPE_CHECKING:
    from torch import Tensor

CODE = "dpok train_online_pg.py"


@dataclass(frozen=True, kw_only=True)
class Config(StepRounds):
    """DPOK for SD v1.5 with LoRA, as in the authors' code."""

    samples_per_round: Count = field(default=6, metadata={"help": f"samples per round [{CODE}]"})
    samples_per_prompt: Count = field(default=1, metadata={"help": f"pictures of each [{CODE}]"})
    updates_per_round: Count = field(default=1, metadata={"help": "updates per pass [ours]"})
    inner_epochs: Count = field(default=5, metadata={"help": f"policy steps per round [{CODE}]"})
    micro_batch: Count = field(default=2, metadata={"help": "samples at once; changes memory only"})
    sampling_steps: Count = field(default=50, metadata={"help": f"DDIM steps [{CODE}]"})
    guidance: NotNegative = field(default=7.5, metadata={"help": f"also in training [{CODE}]"})
    eta: ZeroToOne = field(default=1.0, metadata={"help": f"DDIM stochasticity [{CODE}]"})
    timestep_fraction: Share = field(
        default=0.08, metadata={"help": f"share of scored steps: 24 actions per update [{CODE}]"}
    )
    clip: Positive = field(default=1e-4, metadata={"help": f"ratio clip [{CODE}]"})
    reward_weight: NotNegative = field(default=100.0, metadata={"help": f"w [{CODE}]"})
    kl: NotNegative = field(default=0.01, metadata={"help": f"weight of the KL [{CODE}]"})
    value_steps: Count = field(
        default=5, metadata={"help": f"optimizer steps of V per round [{CODE}]"}
    )
    value_optimizer: AdamW = field(
        default=AdamW(lr=1e-4, weight_decay=1e-2, clip=1.0),
        metadata={"help": f"of V [{CODE}, which does not clip]"},
    )
    optimizer: AdamW = field(
        default=AdamW(lr=1e-5, weight_decay=0.0, clip=0.1), metadata={"help": f"[{CODE}]"}
    )


@register_method("dpok")
class DPOK(PolicyMethod):
    """Policy gradient with a value baseline and a KL to the base model."""

    Config: ClassVar[type] = Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.scale = context.scale()
        backbone = context.backbone
        latents = torch.zeros(1, *backbone.latent_shape, device=backbone.device)
        text, first = self.embedding([""]), torch.zeros_like(latents[:, 0, 0, 0]).long()
        inputs = latents[0].numel() + text.shape[1]
        self.value = value_network(context, inputs, len(self.sampler)).to(backbone.device)
        backbone.count(self.value, latents, text, first)
        self.value_optimizer = Optimizer(config.value_optimizer, list(self.value.parameters()))

    def keeps(self) -> bool:
        return False  # of what is kept there are no outputs for the KL

    def loss(self, actions: Actions) -> Tensor:
        replay, clip = actions.replay, self.config.clip
        assert replay is not None
        base = self.base_output(replay, actions.rows)
        now, reference = (
            self.sampler.noise(replay.i, output, replay.latents) for output in (replay.output, base)
        )
        kl = (now - reference).square().flatten(1).mean(1)
        gains = actions.advantages * actions.ratio.clamp(1 - clip, 1 + clip)
        return (self.config.kl * kl.sum() - self.config.reward_weight * gains.sum()) / actions.size

    def advantages(self, drawn: Round) -> Tensor:
        z = (drawn.rewards - self.scale.mean) / self.scale.deviation
        rows = range(self.config.samples_per_round)
        for _ in range(self.config.value_steps):
            for part in self.parts(rows):
                error = self.values(drawn, part) - z[part, None].to(self.context.backbone.device)
                (error.square().sum() / (len(z) * len(self.sampler.scored))).backward()
            self.value_optimizer.step()
        with torch.no_grad():
            return z[:, None] - gather([self.values(drawn, part) for part in self.parts(rows)])

    def values(self, drawn: Round, rows: Sequence[int]) -> Tensor:
        """V before each scored sampling step of some pictures, (pictures, scored)."""
        scored, device = list(self.sampler.scored), self.context.backbone.device
        latents = drawn.latents[rows][:, scored].flatten(0, 1).to(device)
        text = self.embedding([drawn.prompts[row] for row in rows])
        steps = torch.tensor(scored, device=device).repeat(len(rows))
        found: Tensor = self.value(latents, text.repeat_interleave(len(scored), 0), steps)
        return found.view(len(rows), -1)

    def embedding(self, prompts: list[str]) -> Tensor:
        """(B, D) of B prompts: whatever the model is conditioned on, averaged over tokens."""
        parts = self.context.backbone.encode(prompts)
        return torch.cat([c.flatten(1, -2).mean(1) if c.dim() > 2 else c for c in parts], 1)

    def state_dict(self) -> dict[str, Any]:
        value = {"value": dict(self.value.state_dict()), "v": self.value_optimizer.state_dict()}
        return {**super().state_dict(), **value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.value.load_state_dict(state["value"])
        self.value_optimizer.load_state_dict(state["v"])


def value_network(context: Context, inputs: int, steps: int, hidden: int = 256) -> torch.nn.Module:
    """V: three layers, each scaled by a vector of the sampling step, and a last one to a number."""
    nn = torch.nn  # here, because it is imported when it is first used

    class Value(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = [inputs, hidden, hidden, hidden, 1]
            self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
            self.scales = nn.ModuleList(nn.Embedding(steps, hidden) for _ in range(3))
            generator = context.streams.generator("value", 0)
            for layer in self.layers:
                nn.init.xavier_normal_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)
            for scale in self.scales:
                nn.init.uniform_(scale.weight, generator=generator)

        def forward(self, latents: Tensor, text: Tensor, step: Tensor) -> Tensor:
            x = torch.cat([latents.flatten(1), text], 1).float()
            for layer, scale in zip(self.layers, self.scales, strict=False):
                x = (scale(step) * layer(x)).relu()
            return self.layers[-1](x)

    return Value()
