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

Where a round serves one update only, theta is still old and rho = 1: the log-probabilities of
sampling are those of the update. If all activations are kept (``--keep all``), they keep their
graphs, and the forward passes of the update are saved; the gradient is the same.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from methods import (
    AdamW,
    Context,
    Count,
    Method,
    NotNegative,
    Optimizer,
    Positive,
    Sampling,
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

CODE = "ddpo-pytorch"


@dataclass(frozen=True, kw_only=True)
class Config(Sampling):
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
    """One sampling round of N pictures, on the CPU.

    ``latents`` (N, T + 1, C, h, w), ``log_probs`` (N, scored sampling steps), ``advantages`` (N,).
    """

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
        if config.buffer_min > config.buffer_size:
            raise UserError(
                f"buffer_min is {config.buffer_min}, but only buffer_size, {config.buffer_size}, "
                "rewards are kept per prompt"
            )
        self.config, self.context = config, context
        self.sampler = context.backbone.sampler(config.sampling_steps, config.eta)
        scored = len(self.sampler.scored)
        if not scored:
            raise UserError("DDPO needs a stochastic sampler: eta must be positive")
        self.trained = round(config.timestep_fraction * scored)
        if not 0 < self.trained <= scored:
            raise UserError(
                f"timestep_fraction is {config.timestep_fraction:g}: of {scored} scored sampling "
                f"steps that is {self.trained}; choose above 0 to 1"
            )
        self.optimizer = Optimizer(config.optimizer, context.backbone.parameters())
        self.statistics = PromptStatistics(config.buffer_size, config.buffer_min)
        self.round: Round | None = None
        #: This process's micro-batches of the round: rows, and log-probs with their graphs.
        self.kept: list[tuple[Sequence[int], Tensor]] = []

    def keeps(self) -> bool:
        """Whether sampling keeps what the update needs."""
        config = self.config
        once = config.updates_per_round * config.inner_epochs == 1
        every = self.trained == len(self.sampler.scored)
        return once and every and self.context.backbone.keep == "all"

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
        gradient = [keeps and i in self.sampler.scored for i in range(len(self.sampler))]
        self.kept = []
        for part in micro_batches(range(config.samples_per_round), config.micro_batch):
            texts, shape = [prompts[i] for i in part], backbone.latent_shape
            trajectory = backbone.sample(
                self.sampler,
                texts,
                streams.normal("noise", step, part, shape),
                guidance=config.guidance,
                step_noise=streams.normal("eta", step, part, (len(self.sampler), *shape)),
                gradient=gradient,
                connected=False,
            )
            assert trajectory.log_probs is not None
            latents.append(torch.stack(trajectory.latents, 1))
            log_probs.append(trajectory.log_probs)
            if keeps:
                self.kept.append((part, trajectory.log_probs))
            with torch.no_grad():
                rewards.append(self.context.reward(backbone.decode(trajectory.final), texts))
        scores = gather(rewards)
        limit = config.max_advantage
        advantages = self.statistics.advantages(prompts, scores).clamp(-limit, limit)
        return Round(prompts, gather(latents), gather(log_probs), advantages, float(scores.mean()))

    def learn(self) -> list[tuple[float, float]]:
        """Accumulate the gradient of the round by the graphs that sampling has kept."""
        kept, self.kept = self.kept, []
        columns = range(len(self.sampler.scored))
        size = self.config.samples_per_round * len(columns)
        results = []
        while kept:  # one after the other, so that what has served is freed
            rows, log_probs = kept.pop()
            results.append(self.backward(rows, columns, log_probs, size))
        return results

    def replay(self, step: int, phase: int) -> list[tuple[float, float]]:
        """Accumulate the gradient of one update: its samples pass the denoiser once more.

        The first pass over a round has the order and the micro-batches of the sampling, so that the
        ratio is exactly 1 before the first update; others are shuffled. With ``timestep_fraction``
        below 1 all samples of an update train the same sampling steps.
        """
        config, streams = self.config, self.context.streams
        epoch, update = divmod(phase, config.updates_per_round)
        order = list(range(config.samples_per_round))
        if epoch:
            order = streams.permutation("epoch", step - update, config.samples_per_round)
        batch = order[update * config.update_size : (update + 1) * config.update_size]
        columns = streams.permutation("timesteps", step, len(self.sampler.scored))[: self.trained]
        return [
            self.replayed(rows, column, config.update_size * self.trained)
            for rows in micro_batches(batch, config.micro_batch)
            for column in columns
        ]

    def replayed(self, rows: Sequence[int], column: int, size: int) -> tuple[float, float]:
        """One scored sampling step of one micro-batch."""
        backbone, data = self.context.backbone, self.round
        assert data is not None
        i = self.sampler.scored[column]
        latents, drawn = (data.latents[list(rows), k].to(backbone.device) for k in (i, i + 1))
        output = backbone.predict(
            latents,
            self.sampler.timesteps[i],
            backbone.encode([data.prompts[row] for row in rows]),
            self.config.guidance,
            recompute=False,
        )
        mean = self.sampler.mean(i, output, latents)
        log_prob = self.sampler.log_prob(i, drawn, mean)
        return self.backward(rows, [column], log_prob[:, None], size)

    def backward(
        self, rows: Sequence[int], columns: Sequence[int], log_probs: Tensor, size: int
    ) -> tuple[float, float]:
        """Accumulate the gradient of some actions, (samples, scored steps), out of ``size``.

        Returns their share of the mean loss and the largest |rho - 1|.
        """
        clip, data = self.config.clip, self.round
        assert data is not None
        old = data.log_probs[list(rows)][:, list(columns)].to(log_probs.device)
        advantages = data.advantages[list(rows), None].to(log_probs.device)
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
