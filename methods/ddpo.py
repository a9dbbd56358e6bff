r"""DDPO: denoising as a Markov decision process (Black et al. 2023).

A sampling round draws trajectories with the stochastic sampler (eta 1) and scores the pictures.
Each sampling step is an action whose log-probability is known, and the clipped surrogate of PPO is
minimised over all of them,

    mean_{i,t} max(-A_i rho_it, -A_i clip(rho_it, 1 - c, 1 + c)),
    rho_it = exp(log p_theta(x_{t-1} | x_t, c) - log p_old(x_{t-1} | x_t, c)),

where A_i is the reward normalised by its prompt's running statistics, clipped to [-5, 5], and the
log-probability is averaged over latent dimensions (ddpo-pytorch, ``ddim_with_logprob.py``). With
``clip = None`` it is the score-function estimator, -A_i log p (DDPO-SF).

Where a round serves one update only, theta is still old and rho = 1: the log-probabilities of
sampling are those of the update. If all activations are kept (``--keep all``), they keep their
graphs, and the forward passes of the update are saved; the gradient is the same.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from methods import (
    AdamW,
    Context,
    Method,
    Optimizer,
    Sampling,
    StepResult,
    UserError,
    gather,
    method_variant,
    micro_batches,
    register_method,
    share,
    torch,
    total,
)

if TYPE_CHECKING:
    from torch import Tensor

CODE = "ddpo-pytorch"


@dataclass(frozen=True, kw_only=True)
class Config(Sampling):
    """DDPO for SD v1.5 with LoRA, as in ddpo-pytorch."""

    samples_per_round: int = field(default=256, metadata={"help": f"samples per round [{CODE}]"})
    samples_per_prompt: int = field(
        default=1, metadata={"help": f"pictures of each prompt drawn [1: {CODE}; more: ours]"}
    )
    updates_per_round: int = field(
        default=2, metadata={"help": f"optimizer steps per pass [{CODE}]"}
    )
    inner_epochs: int = field(default=1, metadata={"help": f"passes over a round [{CODE}]"})
    micro_batch: int = field(default=8, metadata={"help": "samples at once; changes memory only"})
    sampling_steps: int = field(default=50, metadata={"help": f"DDIM steps [{CODE}]"})
    guidance: float = field(default=5.0, metadata={"help": f"also in training [{CODE}]"})
    eta: float = field(default=1.0, metadata={"help": f"DDIM stochasticity [{CODE}]"})
    clip: float | None = field(
        default=1e-4, metadata={"help": f"ratio clip; None: DDPO-SF [{CODE}]"}
    )
    max_advantage: float = field(default=5.0, metadata={"help": f"advantage clip [{CODE}]"})
    timestep_fraction: float = field(
        default=1.0, metadata={"help": f"of steps trained on [{CODE}]"}
    )
    buffer_size: int = field(default=32, metadata={"help": f"rewards kept per prompt [{CODE}]"})
    buffer_min: int = field(
        default=16, metadata={"help": f"fewer: statistics of the round [{CODE}]"}
    )
    optimizer: AdamW = field(
        default=AdamW(lr=3e-4, weight_decay=1e-4, clip=1.0), metadata={"help": f"[{CODE}]"}
    )

    @property
    def update_size(self) -> int:
        return self.samples_per_round // self.updates_per_round

    def resized(self, update_size: int) -> Config:
        samples = update_size * self.updates_per_round
        if samples % self.samples_per_prompt:
            raise UserError(f"samples_per_round cannot be {samples}: see samples_per_prompt")
        return replace(self, samples_per_round=samples)

    def small(self, samples: int, sampling_steps: int) -> Config:
        grouped = replace(self, samples_per_prompt=2, updates_per_round=2, micro_batch=samples // 2)
        return grouped.resampled(sampling_steps).resized(samples // 2)


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


@dataclass
class Round:
    """One sampling round, on the CPU: latents (N, T + 1, C, h, w), log_probs (N, T), (N,)."""

    prompts: list[str]
    latents: Tensor
    log_probs: Tensor
    advantages: Tensor
    reward: float


@register_method("ddpo")
class DDPO(Method):
    """Policy gradient over sampling steps, with importance sampling and clipping."""

    Config: ClassVar[type] = Config
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})

    def __init__(self, config: Config, context: Context) -> None:
        if config.samples_per_round % config.updates_per_round:
            raise UserError("samples_per_round must be a multiple of updates_per_round")
        if (config.samples_per_round // config.updates_per_round) % config.micro_batch:
            raise UserError(
                "samples_per_round / updates_per_round must be a multiple of micro_batch"
            )
        if config.samples_per_round % config.samples_per_prompt:
            raise UserError("samples_per_round must be a multiple of samples_per_prompt")
        if config.eta <= 0:
            raise UserError("DDPO needs a stochastic sampler: eta must be positive")
        self.config, self.context = config, context
        self.sampler = context.backbone.sampler(config.sampling_steps, config.eta)
        self.optimizer = Optimizer(config.optimizer, context.backbone.parameters())
        self.statistics = PromptStatistics(config.buffer_size, config.buffer_min)
        self.round: Round | None = None
        #: This process's micro-batches of the round: rows, and log-probs with their graphs.
        self.kept: list[tuple[slice, Tensor]] = []

    def keeps(self) -> bool:
        """Whether sampling keeps what the update needs."""
        config = self.config
        once = config.updates_per_round * config.inner_epochs == 1 and config.timestep_fraction == 1
        return once and self.context.backbone.keep == "all"

    def step(self, step: int) -> StepResult:
        phase = step % (self.config.updates_per_round * self.config.inner_epochs)
        if phase == 0:
            self.round = self.sample(step)
        assert self.round is not None
        results = self.learn() if self.keeps() else self.replay(step, phase)
        (loss,) = total(sum(loss for loss, _ in results))
        ratios = torch.tensor([0.0, *(ratio for _, ratio in results)])
        return StepResult(
            reward=self.round.reward,
            loss=loss,
            grad_norm=self.optimizer.step(),
            extra={"ratio_deviation": float(gather([ratios]).max())},
        )

    def sample(self, step: int) -> Round:
        """Draw and score one round."""
        config, backbone, streams = self.config, self.context.backbone, self.context.streams
        drawn = self.context.prompts(step, config.samples_per_round // config.samples_per_prompt)
        prompts = [prompt for prompt in drawn for _ in range(config.samples_per_prompt)]
        latents, log_probs, rewards, keeps = [], [], [], self.keeps()
        self.kept = []
        for part in micro_batches(range(config.samples_per_round), config.micro_batch):
            texts, shape = [prompts[i] for i in part], backbone.latent_shape
            trajectory = backbone.sample(
                self.sampler,
                texts,
                streams.normal("noise", step, part, shape),
                guidance=config.guidance,
                step_noise=streams.normal("eta", step, part, (len(self.sampler), *shape)),
                gradient=[keeps] * len(self.sampler),
                connected=False,
            )
            assert trajectory.log_probs is not None
            latents.append(torch.stack(trajectory.latents, 1))
            log_probs.append(trajectory.log_probs)
            if keeps:
                self.kept.append((slice(part[0], part[-1] + 1), trajectory.log_probs))
            with torch.no_grad():
                rewards.append(self.context.reward(backbone.decode(trajectory.final), texts))
        scores = gather(rewards)
        limit = config.max_advantage
        advantages = self.statistics.advantages(prompts, scores).clamp(-limit, limit)
        return Round(prompts, gather(latents), gather(log_probs), advantages, float(scores.mean()))

    def learn(self) -> list[tuple[float, float]]:
        """Accumulate the gradient of the round by the graphs that sampling has kept."""
        kept, self.kept = self.kept, []
        size = self.config.samples_per_round * len(self.sampler)
        results = []
        while kept:  # one after the other, so that what has served is freed
            rows, log_probs = kept.pop()
            results.append(self.backward(rows, slice(None), log_probs, size))
        return results

    def replay(self, step: int, phase: int) -> list[tuple[float, float]]:
        """Accumulate the gradient of one update: its micro-batches pass the denoiser again."""
        config = self.config
        epoch, update = divmod(phase, config.updates_per_round)
        # One permutation per pass; micro-batches of the first pass are those of the sampling, so
        # that the ratio is exactly 1 before the first update.
        groups = config.samples_per_round // config.micro_batch
        order = list(range(groups))
        if epoch:
            order = self.context.streams.permutation("epoch", step - update, groups)
        size = groups // config.updates_per_round
        mine = share(order[update * size : (update + 1) * size])
        return [result for group in mine for result in self.replayed(step, group, size)]

    def replayed(self, step: int, group: int, groups: int) -> Iterator[tuple[float, float]]:
        """Each sampling step of one micro-batch out of ``groups``."""
        config, backbone, data = self.config, self.context.backbone, self.round
        assert data is not None
        rows = slice(group * config.micro_batch, (group + 1) * config.micro_batch)
        latents = data.latents[rows].to(backbone.device)
        condition = backbone.encode(data.prompts[rows])
        trained = round(config.timestep_fraction * len(self.sampler))
        order = self.context.streams.permutation("timesteps", step, len(self.sampler), group)
        for i in order[:trained]:
            output = backbone.predict(
                latents[:, i],
                self.sampler.timesteps[i],
                condition,
                config.guidance,
                recompute=False,
            )
            mean = self.sampler.mean(i, output, latents[:, i])
            log_prob = self.sampler.log_prob(i, latents[:, i + 1], mean)
            size = groups * config.micro_batch * trained
            yield self.backward(rows, slice(i, i + 1), log_prob[:, None], size)

    def backward(
        self, rows: slice, steps: slice, log_probs: Tensor, size: int
    ) -> tuple[float, float]:
        """Accumulate the gradient of some actions, (samples, sampling steps), out of ``size``.

        Returns their share of the mean loss and the largest |rho - 1|.
        """
        clip, data = self.config.clip, self.round
        assert data is not None
        old = data.log_probs[rows, steps].to(log_probs.device)
        advantages = data.advantages[rows, None].to(log_probs.device)
        ratio = torch.exp(log_probs - old)
        if clip is None:
            surrogate = -advantages * log_probs
        else:
            clipped = ratio.clamp(1 - clip, 1 + clip)
            surrogate = torch.maximum(-advantages * ratio, -advantages * clipped)
        loss = surrogate.sum() / size
        loss.backward()
        return float(loss.detach()), float((ratio.detach() - 1).abs().max())

    def state_dict(self) -> dict[str, Any]:
        recent = {prompt: list(values) for prompt, values in self.statistics.recent.items()}
        rounds = vars(self.round) if self.round else None
        return {"optimizer": self.optimizer.state_dict(), "recent": recent, "round": rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.statistics.recent.clear()
        for prompt, values in state["recent"].items():
            self.statistics.recent[prompt].extend(values)
        self.round = Round(**state["round"]) if state["round"] else None


method_variant("ddpo-sf", "ddpo", clip=None)
