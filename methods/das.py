r"""DAS: sequential Monte Carlo towards the tilted base model (Kim et al. 2025, arXiv 2501.05803).

N particles of a prompt are denoised together (eta = 1), so that they end as draws from
p_base(x_0) exp(z(x_0) / alpha). With r_k = z(decode(x0_hat(x_k))) / alpha, each step is proposed
along the gradient of the reward and its weight corrects for that,

    x_{k+1} ~ q = N(mu(x_k) + sigma_k^2 lambda_{k+1} grad r_k, sigma_k^2),
    w_{k+1} = w_k  p(x_{k+1} | x_k) / q(x_{k+1} | x_k)  exp(lambda_{k+1} r_{k+1} - lambda_k r_k),

where p = N(mu, sigma_k^2) is the base model's step and lambda rises from 0 to 1, since early
predictions say little. Particles are drawn again by their weights where these are worth fewer than
half of them. The particle with the largest weight is delivered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from methods import (
    Candidates,
    Context,
    Positive,
    Selection,
    UserError,
    ZeroToOne,
    register_selection,
    torch,
)

CODE = "krafton-ai/DAS config/sd.py"
#: lambda at step i of 100 is 1.008^i - 1, and at most 1 (the same file).
TEMPER = 1.008


@dataclass(frozen=True, kw_only=True)
class Config(Candidates):
    """DAS for SD v1.5."""

    alpha: Positive = field(
        default=0.01,
        metadata={
            "help": "temperature of the reward, in deviations of the base model's pictures "
            f"[ours; {CODE}: 0.005 of the aesthetic score]"
        },
    )
    resample_below: ZeroToOne = field(
        default=0.5, metadata={"help": f"share of effective particles to resample at [{CODE}]"}
    )
    eta: ZeroToOne = field(default=1.0, metadata={"help": f"DDIM stochasticity [{CODE}]"})


@register_selection("das")
class DAS(Selection):
    """Particles that are weighed, drawn again and pushed along the gradient of the reward."""

    Config: ClassVar[type] = Config
    needs: ClassVar[frozenset[str]] = frozenset({"reward_grad"})

    def __init__(self, config: Config, context: Context) -> None:
        if config.candidates < 1 or config.alpha <= 0:
            raise UserError(
                f"candidates is {config.candidates} and alpha {config.alpha:g}; choose 1 or more, "
                "and above 0"
            )
        self.config, self.context = config, context
        self.sampler = context.backbone.sampler(config.sampling_steps, config.eta)
        if not all(self.sampler.std(i) > 0 for i in range(len(self.sampler))):
            raise UserError(f"eta is {config.eta:g}; without noise there is nothing to weigh")
        self.temperature = config.alpha * context.scale().deviation

    def temper(self, i: int) -> float:
        """lambda at the latents before sampling step ``i``; 1 after the last."""
        steps = len(self.sampler)
        return 1.0 if i == steps else min(TEMPER ** (100 * i / steps) - 1, 1.0)

    def draw(self, prompts: Sequence[str], pictures: Sequence[int]) -> torch.Tensor:
        chosen = []
        for prompt, picture in zip(prompts, pictures, strict=True):
            images, weights = self.particles(prompt, picture)
            chosen.append(images[int(weights.argmax())])
        return torch.stack(chosen)

    def particles(self, prompt: str, picture: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (N, 3, H, W) and the logarithms of their weights, but for a constant."""
        backbone, streams, sampler = self.context.backbone, self.context.streams, self.sampler
        count, shape = self.config.candidates, backbone.latent_shape
        prompts = [prompt] * count
        condition = backbone.encode(prompts)

        def noise(purpose: str, *more: int) -> torch.Tensor:
            drawn = [streams.normal(purpose, n, [picture], (*more, *shape)) for n in range(count)]
            return torch.cat(drawn).to(backbone.device)

        latents, steps = noise("evaluation"), noise("particle", len(sampler))
        weights = torch.zeros(count, dtype=torch.float64)  # logarithms
        before = torch.zeros(count, dtype=torch.float64)
        for i, timestep in enumerate(sampler.timesteps):
            latents = latents.detach().requires_grad_()
            output = backbone.predict(
                latents, timestep, condition, self.config.guidance, recompute=False
            )
            x0 = sampler.x0(i, output, latents)
            worth = self.context.reward(backbone.decode(x0), prompts) / self.temperature
            (slope,) = torch.autograd.grad(worth.sum(), latents)
            now = self.temper(i) * worth.detach().double().cpu()
            weights, kept = self.resampled(weights + now - before, i, picture)
            before, std = now[kept], sampler.std(i)
            mean = sampler.mean(i, output, latents).detach()[kept]
            push = std * self.temper(i + 1) * slope[kept]  # in deviations of the step
            latents = mean + std * (push + steps[:, i])
            ratio = (push * (push + 2 * steps[:, i])).flatten(1).double().sum(1) / 2
            weights = weights - ratio.cpu()  # log p - log q
        with torch.no_grad():
            images = backbone.decode(latents)
            worth = self.context.reward(images, prompts) / self.temperature
        return images, weights + worth.double().cpu() - before

    def resampled(
        self, weights: torch.Tensor, i: int, picture: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and which particles they are of, drawn again if the weights are too uneven."""
        count = len(weights)
        shares = weights.softmax(0)
        if 1 / float(shares.square().sum()) >= self.config.resample_below * count:
            return weights, torch.arange(count)
        # Systematic resampling: a comb of even spacing, shifted at random.
        shift = torch.rand(1, generator=self.context.streams.generator("resample", i, picture))
        comb = (torch.arange(count) + shift.double()) / count
        kept = torch.searchsorted(shares.cumsum(0), comb).clamp(max=count - 1)
        return torch.zeros(count, dtype=torch.float64), kept
