r"""Reward-weighted regression, the DDPO paper's baseline (Black et al. 2023, section 4.1).

Each iteration samples a set of N pictures with the current model, then repeats the ordinary
denoising loss on them, weighted by the reward:

    w = N softmax(beta z),   mean_i w_i || eps - eps_theta(x_t, t, c_i) ||^2,
    x_t = sqrt(abar_t) x0_i + sqrt(1 - abar_t) eps,

with t uniform and the prediction formed with classifier-free guidance. z is the reward in standard
deviations of its prompt's pictures, and the softmax is over these: weights average 1 within each
prompt, because a conditional model cannot learn to draw easier prompts, and beta has no unit.
``scope = "set"`` is the published rule: z = R as it is, and the softmax over the whole set.
``sparse`` keeps the best share of each prompt's pictures, unweighted (RWR-sparse).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from methods import (
    AdamW,
    Batch,
    Context,
    Count,
    Method,
    NotNegative,
    Optimizer,
    Positive,
    Share,
    StepResult,
    UserError,
    ZeroToOne,
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
Scope = Literal["prompt", "set"]


@dataclass(frozen=True, kw_only=True)
class Config(Batch):
    """RWR for SD v1.5."""

    samples_per_round: Count = field(
        default=256, metadata={"help": f"N, the sampled set [ours; {CODE}: 10240]"}
    )
    samples_per_prompt: Count = field(
        default=8, metadata={"help": f"pictures of each prompt drawn [ours; {CODE}: by chance]"}
    )
    updates_per_round: Count = field(
        default=8, metadata={"help": f"optimizer steps per set [ours: 4 epochs; {CODE}: 5]"}
    )
    batch_size: Count = field(default=128, metadata={"help": "samples per update [ours]"})
    micro_batch: Count = field(default=8, metadata={"help": "samples at once; changes memory only"})
    sampling_steps: Count = field(default=50, metadata={"help": f"DDIM steps [{CODE}]"})
    guidance: NotNegative = field(
        default=5.0, metadata={"help": f"in sampling and training [{CODE}]"}
    )
    eta: ZeroToOne = field(default=1.0, metadata={"help": f"DDIM stochasticity [{CODE}]"})
    scope: Scope = field(
        default="prompt",
        metadata={
            "help": "weights by rewards standardised within each prompt, or by raw rewards over "
            f"the whole set [prompt: ours; set: {CODE}]"
        },
    )
    beta: Positive = field(
        default=1.0,
        metadata={"help": f"inverse temperature, scope prompt [ours]; scope set [{CODE}: 0.2]"},
    )
    sparse: Share | None = field(
        default=None, metadata={"help": f"share kept per prompt, e.g. 0.1: RWR-sparse [{CODE}]"}
    )
    optimizer: AdamW = field(
        default=AdamW(lr=3e-4, weight_decay=1e-4, clip=1.0), metadata={"help": "[ddpo-pytorch]"}
    )

    def resized(self, update_size: int) -> Config:
        samples, rest = divmod(self.samples_per_round * update_size, self.batch_size)
        if rest or samples % self.samples_per_prompt:
            raise UserError(
                f"batch_size cannot be {update_size}: samples_per_round would be uneven"
            )
        return replace(self, batch_size=update_size, samples_per_round=samples)

    def small(self, samples: int, sampling_steps: int) -> Config:
        even = replace(
            self,
            samples_per_round=samples,
            samples_per_prompt=2,
            batch_size=samples,
            updates_per_round=2,
        )
        return replace(even.resampled(sampling_steps), micro_batch=samples // 2)


def weights(
    rewards: Tensor, prompts: list[str], beta: float, scope: Scope, sparse: float | None
) -> Tensor:
    """(N,) weights that average 1 over the set, and over each prompt where that is the scope."""
    result = torch.zeros_like(rewards)
    by_prompt = scope == "prompt" or sparse is not None
    for group in dict.fromkeys(prompts) if by_prompt else [None]:
        rows = torch.tensor([i for i, p in enumerate(prompts) if group is None or p == group])
        values = rewards[rows]
        if sparse is not None:
            kept = max(1, round(sparse * len(rows)))
            result[rows[values.topk(kept).indices]] = len(rows) / kept
            continue
        if scope == "prompt":
            spread = values.std(correction=0)
            values = (values - values.mean()) / spread if spread > 0 else torch.zeros_like(values)
        result[rows] = len(rows) * torch.softmax(beta * values, 0)
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
        if config.samples_per_round % config.samples_per_prompt:
            raise UserError("samples_per_round must be a multiple of samples_per_prompt")
        if config.batch_size > config.samples_per_round:
            raise UserError(
                f"batch_size is {config.batch_size}, but a round has only samples_per_round, "
                f"{config.samples_per_round}"
            )
        self.config, self.context = config, context
        self.sampler = context.backbone.sampler(config.sampling_steps, config.eta)
        self.optimizer = Optimizer(config.optimizer, context.backbone.parameters())
        self.round: Round | None = None

    def step(self, step: int) -> StepResult:
        config, streams = self.config, self.context.streams
        if step % config.updates_per_round == 0:
            self.round = self.sample(step)
        assert self.round is not None
        # With sparse weights most of the set is never looked at.
        useful = [i for i, w in enumerate(self.round.weights.tolist()) if w > 0]
        order = [useful[i] for i in streams.permutation("batch", step, len(useful))]
        order = order[: config.batch_size]
        loss = 0.0
        for part in micro_batches(order, config.micro_batch):
            loss += self.backward(step, part, len(order))
        (loss,) = total(loss)
        norm = self.optimizer.step()
        weights = self.round.weights
        informative = bool((weights != weights[0]).any())
        return StepResult(
            reward=self.round.reward, loss=loss, grad_norm=norm, informative=informative
        )

    def sample(self, step: int) -> Round:
        """Draw, score and weigh one set."""
        config, backbone, streams = self.config, self.context.backbone, self.context.streams
        drawn = self.context.prompts(step, config.samples_per_round // config.samples_per_prompt)
        prompts = [prompt for prompt in drawn for _ in range(config.samples_per_prompt)]
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
        w = weights(scores, prompts, config.beta, config.scope, config.sparse)
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


method_variant("rwr-set", "rwr", scope="set", beta=0.2, samples_per_prompt=1)
method_variant("rwr-sparse", "rwr", sparse=0.1)
