r"""Reward-weighted regression, the DDPO paper's baseline (Black et al. 2023, section 4.1).

Each iteration samples a set of N pictures with the current model, then repeats the ordinary
denoising loss on them, weighted by the reward:

    w = N softmax(beta R),   mean_i w_i || eps - eps_theta(x_t, t, c_i) ||^2,
    x_t = sqrt(abar_t) x0_i + sqrt(1 - abar_t) eps,

with t uniform and the prediction formed with classifier-free guidance. Weights average 1, over the
whole set or, with ``per_prompt``, within each prompt. ``sparse`` keeps the best share of each
prompt's pictures, unweighted (RWR-sparse).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from methods import (
    AdamW,
    Batch,
    Context,
    Method,
    Optimizer,
    StepResult,
    UserError,
    gather,
    method_variant,
    micro_batches,
    register_method,
    torch,
    total,
)

if TYPE_CHECKING:
    from torch import Tensor

CODE = "jannerm/ddpo"


@dataclass(frozen=True, kw_only=True)
class Config(Batch):
    """RWR for SD v1.5."""

    samples_per_round: int = field(
        default=256, metadata={"help": f"N, the sampled set [ours; {CODE}: 10240]"}
    )
    updates_per_round: int = field(
        default=8, metadata={"help": f"optimizer steps per set [ours: 4 epochs; {CODE}: 5]"}
    )
    batch_size: int = field(default=128, metadata={"help": "samples per update [ours]"})
    micro_batch: int = field(default=8, metadata={"help": "samples at once; changes memory only"})
    sampling_steps: int = field(default=50, metadata={"help": f"DDIM steps [{CODE}]"})
    guidance: float = field(default=5.0, metadata={"help": f"in sampling and training [{CODE}]"})
    eta: float = field(default=1.0, metadata={"help": f"DDIM stochasticity [{CODE}]"})
    beta: float = field(default=0.2, metadata={"help": f"inverse temperature [{CODE}]"})
    per_prompt: bool = field(default=False, metadata={"help": f"softmax per prompt [{CODE}]"})
    sparse: float | None = field(
        default=None, metadata={"help": f"share kept per prompt, e.g. 0.1: RWR-sparse [{CODE}]"}
    )
    optimizer: AdamW = field(
        default=AdamW(lr=3e-4, weight_decay=1e-4, clip=1.0), metadata={"help": "[ddpo-pytorch]"}
    )

    def resized(self, update_size: int) -> Config:
        samples, rest = divmod(self.samples_per_round * update_size, self.batch_size)
        if rest:
            raise UserError(
                f"batch_size cannot be {update_size}: samples_per_round would be uneven"
            )
        return replace(self, batch_size=update_size, samples_per_round=samples)

    def small(self, samples: int, sampling_steps: int) -> Config:
        even = replace(self, samples_per_round=samples, batch_size=samples, updates_per_round=2)
        return replace(even.resampled(sampling_steps), micro_batch=samples // 2)


def weights(
    rewards: Tensor, prompts: list[str], beta: float, per_prompt: bool, sparse: float | None
) -> Tensor:
    """(N,) weights that average 1 over the set, and over each prompt where it is the unit."""
    result = torch.zeros_like(rewards)
    by_prompt = per_prompt or sparse is not None
    for group in dict.fromkeys(prompts) if by_prompt else [None]:
        rows = torch.tensor([i for i, p in enumerate(prompts) if group is None or p == group])
        if sparse is None:
            result[rows] = len(rows) * torch.softmax(beta * rewards[rows], 0)
        else:
            kept = max(1, round(sparse * len(rows)))
            result[rows[rewards[rows].topk(kept).indices]] = len(rows) / kept
    return result


@dataclass
class Round:
    """A sampled set, on the CPU: clean latents (N, C, h, w) and weights (N,)."""

    prompts: list[str]
    latents: Tensor
    weights: Tensor
    reward: float


@register_method("rwr")
class RWR(Method):
    """Denoising loss on the model's own samples, weighted by the reward."""

    Config: ClassVar[type] = Config
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})

    def __init__(self, config: Config, context: Context) -> None:
        if config.sparse is not None and not 0 < config.sparse <= 1:
            raise UserError(f"sparse is {config.sparse}; it is a share, above 0 and at most 1")
        self.config, self.context = config, context
        self.sampler = context.backbone.sampler(config.sampling_steps, config.eta)
        self.optimizer = Optimizer(config.optimizer, context.backbone.parameters())
        self.round: Round | None = None

    def step(self, step: int) -> StepResult:
        config, streams = self.config, self.context.streams
        if step % config.updates_per_round == 0:
            self.round = self.sample(step)
        assert self.round is not None
        size = min(config.batch_size, config.samples_per_round)
        # With sparse weights most of the set is never looked at.
        useful = [i for i, w in enumerate(self.round.weights.tolist()) if w > 0]
        order = [useful[i] for i in streams.permutation("batch", step, len(useful))][:size]
        loss = 0.0
        for part in micro_batches(order, config.micro_batch):
            loss += self.backward(step, part, len(order))
        (loss,) = total(loss)
        norm = self.optimizer.step()
        return StepResult(reward=self.round.reward, loss=loss, grad_norm=norm)

    def sample(self, step: int) -> Round:
        """Draw, score and weigh one set."""
        config, backbone, streams = self.config, self.context.backbone, self.context.streams
        prompts = self.context.prompts(step, config.samples_per_round)
        latents, rewards = [], []
        for part in micro_batches(range(config.samples_per_round), config.micro_batch):
            texts, shape = [prompts[i] for i in part], backbone.latent_shape
            trajectory = backbone.sample(
                self.sampler,
                texts,
                streams.normal("noise", step, part, shape),
                guidance=config.guidance,
                step_noise=streams.normal("eta", step, part, (len(self.sampler), *shape)),
            )
            latents.append(trajectory.final)
            with torch.no_grad():
                rewards.append(self.context.reward(backbone.decode(trajectory.final), texts))
        scores = gather(rewards)
        w = weights(scores, prompts, config.beta, config.per_prompt, config.sparse)
        return Round(prompts, gather(latents), w, float(scores.mean()))

    def backward(self, step: int, rows: Sequence[int], size: int) -> float:
        """Accumulate the weighted denoising loss of some samples."""
        backbone, streams, data = self.context.backbone, self.context.streams, self.round
        assert data is not None
        noise = streams.normal("regression", step, rows, backbone.latent_shape).to(backbone.device)
        timesteps = [
            streams.integer("timestep", step, 0, backbone.train_timesteps, i) for i in rows
        ]
        noisy, target = backbone.noised(data.latents[rows].to(noise), noise, timesteps)
        condition = backbone.encode([data.prompts[i] for i in rows])
        output = backbone.predict(
            noisy, timesteps, condition, self.config.guidance, recompute=False
        )
        errors = (output - target).square().flatten(1).mean(1)
        loss = (data.weights[rows].to(errors.device) * errors).sum() / size
        loss.backward()
        return float(loss.detach())

    def state_dict(self) -> dict[str, Any]:
        rounds = vars(self.round) if self.round else None
        return {"optimizer": self.optimizer.state_dict(), "round": rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.round = Round(**state["round"]) if state["round"] else None


method_variant("rwr-per-prompt", "rwr", per_prompt=True)
method_variant("rwr-sparse", "rwr", sparse=0.1)
