"""DDPO: ratio 1 before the first update, and the score-function gradient there."""

import pytest
import torch
from conftest import Greyness, tiny_pipeline

from benchmarks.api import Context, Scale, UserError
from benchmarks.backbone.stable_diffusion import StableDiffusion
from benchmarks.compute.ledger import Ledger, Pass
from benchmarks.streams import Streams
from methods.ddpo import DDPO, Config, PromptStatistics

SMALL = {"samples_per_round": 8, "micro_batch": 4, "sampling_steps": 3, "updates_per_round": 1}


FORWARD = Pass("denoiser", "forward")
BACKWARD = Pass("denoiser", "backward", weights_only=True)


def gradient(method: DDPO, step: int = 0) -> torch.Tensor:
    captured: list[torch.Tensor] = []

    def capture() -> float:
        captured.extend(p.grad.clone().flatten() for p in method.optimizer.parameters)
        for p in method.optimizer.parameters:
            p.grad = None
        return 0.0

    method.optimizer.step = capture  # type: ignore[method-assign]
    method.step(step)
    return torch.cat(captured)


def backward_only(method: DDPO) -> dict:
    """Loss, reward and gradient of a step that moves nothing."""
    results = []
    step = method.step
    method.step = lambda i: results.append(step(i))  # type: ignore[method-assign]
    flat = gradient(method)
    return {"loss": results[0].loss, "reward": results[0].reward, "gradient": flat}


@pytest.mark.parametrize("keep", ["all", "latents"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_ratio_is_exactly_one_before_the_first_update(context: Context, guidance: float, keep):
    context.backbone.use(keep)
    method = DDPO(Config(**SMALL, guidance=guidance), context)
    assert method.step(0).extra["ratio_deviation"] == 0.0


@pytest.mark.parametrize("keep", ["all", "latents"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ratio_is_exactly_one_in_half_precision(dtype: torch.dtype, keep):
    backbone = StableDiffusion(tiny_pipeline().to(dtype), Ledger(), keep=keep)
    assert all(p.dtype == torch.float32 for p in backbone.parameters())
    context = Context(
        backbone=backbone,
        reward=Greyness(),
        prompts=lambda step, count: ["cat", "dog"] * (count // 2),
        streams=Streams(0),
        scale=lambda: Scale(mean=0.0, deviation=1.0),
    )
    result = DDPO(Config(**SMALL, guidance=5.0), context).step(0)
    assert result.extra["ratio_deviation"] == 0.0
    assert result.grad_norm > 0


@pytest.mark.parametrize("clip", [1e-4, None])
def test_kept_forward_passes_give_the_gradient_of_repeated_ones(context: Context, clip, compared):
    backbone, ledger = context.backbone, context.backbone.ledger
    found, losses, counts = [], [], []
    for keep in ("all", "latents"):
        backbone.use(keep)
        ledger.counts.clear()
        method = DDPO(Config(**SMALL, clip=clip), context)
        losses.append(backward_only(method))
        found.append(losses[-1].pop("gradient"))
        counts.append((ledger.counts[FORWARD], ledger.counts[BACKWARD]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5, abs=1e-7)
    compared("DDPO, LoRA gradient by kept forward passes", *found, 1e-5)
    # 8 samples, two evaluations each for guidance; 3 sampling steps, of which 2 are scored.
    assert method.sampler.scored == (0, 2)
    assert counts[0] == (48, 32)
    assert counts[1] == (80, 32)


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_the_micro_batch_changes_nothing(context: Context, micro_batch: int):
    """With several updates and passes, and where only some sampling steps are trained."""
    start = context.backbone.weights()

    def trained(size: int) -> list[torch.Tensor]:
        context.backbone.load_weights(start)
        several = {"updates_per_round": 2, "inner_epochs": 2, "timestep_fraction": 0.5}
        method = DDPO(Config(**(SMALL | several | {"micro_batch": size})), context)
        for step in range(4):
            method.step(step)
        return list(context.backbone.weights().values())

    for found, expected in zip(trained(micro_batch), trained(4), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("fraction", [-1.0, 0.0, 0.04, 2.0])
def test_a_share_of_no_or_too_many_steps_is_refused(context: Context, fraction: float):
    with pytest.raises(UserError, match="timestep_fraction"):
        DDPO(Config(**SMALL, timestep_fraction=fraction), context)


def test_what_is_kept_serves_once_and_is_no_state(context: Context):
    method = DDPO(Config(**SMALL), context)
    method.step(0)
    assert method.kept == []
    assert not method.round.log_probs.requires_grad  # type: ignore[union-attr]
    assert method.step(1).extra["ratio_deviation"] == 0.0


@pytest.mark.parametrize(
    "change", [{"updates_per_round": 2}, {"inner_epochs": 2}, {"timestep_fraction": 0.5}]
)
def test_nothing_is_kept_for_a_policy_that_moves(context: Context, change: dict):
    method = DDPO(Config(**(SMALL | change)), context)
    assert not method.keeps()
    method.step(0)
    assert method.kept == []


def test_ratio_moves_after_an_update(context: Context):
    method = DDPO(Config(**(SMALL | {"updates_per_round": 2})), context)
    assert method.step(0).extra["ratio_deviation"] == 0.0
    assert method.step(1).extra["ratio_deviation"] > 0.0


def test_at_ratio_one_the_gradient_is_the_score_function(context: Context):
    ours = gradient(DDPO(Config(**SMALL), context))
    score = gradient(DDPO(Config(**SMALL, clip=None), context))
    torch.testing.assert_close(ours, score, rtol=1e-3, atol=1e-7)


def test_clipping_stops_the_gradient_outside_the_trust_region(context: Context):
    method = DDPO(Config(**(SMALL | {"inner_epochs": 2, "clip": 1e-4})), context)
    method.step(0)
    assert method.round is not None
    # With positive advantages and ratios far above 1 + clip the surrogate is constant.
    method.round.advantages = torch.ones(8)
    method.round.log_probs = method.round.log_probs - 1.0
    assert gradient(method, step=1).abs().max() == 0


def test_advantages_use_the_prompt_once_it_is_known():
    statistics = PromptStatistics(size=4, minimum=2)
    rewards = torch.tensor([1.0, 3.0, 10.0])
    found = statistics.advantages(["cat", "cat", "dog"], rewards)
    everything = (10.0 - rewards.mean()) / rewards.std(correction=0)
    torch.testing.assert_close(found, torch.tensor([-1.0, 1.0, float(everything)]))
    # The buffer holds the latest four: 3, 5, 5, 5 (the current ones are added first).
    again = statistics.advantages(["cat"] * 3, torch.full((3,), 5.0))
    torch.testing.assert_close(again, torch.full((3,), (5 - 4.5) / 0.75**0.5))


def test_resume_gives_the_identical_next_step(context: Context):
    method = DDPO(Config(**(SMALL | {"updates_per_round": 2})), context)
    method.step(0)
    weights, state = context.backbone.weights(), method.state_dict()
    import copy

    state = copy.deepcopy(state)
    method.step(1)
    expected = context.backbone.weights()
    context.backbone.load_weights(weights)
    resumed = DDPO(method.config, context)
    resumed.load_state_dict(state)
    resumed.step(1)
    for name, value in context.backbone.weights().items():
        assert torch.equal(value, expected[name])


@pytest.mark.parametrize(
    "bad", [{"samples_per_round": 9}, {"micro_batch": 3}, {"eta": 0.0}, {"updates_per_round": 3}]
)
def test_impossible_configurations_are_refused(context: Context, bad: dict):
    with pytest.raises(UserError):
        DDPO(Config(**({**SMALL, "updates_per_round": 2} | bad)), context)


def test_estimate_is_unbiased_on_a_known_gradient(context: Context):
    """E[A * grad log p] of the last sampling step's Gaussian is the gradient of the mean reward.

    The reward is linear in the mean of the step, so the exact gradient is known by backpropagation.
    """
    backbone, count = context.backbone, 4000
    sampler = backbone.sampler(3, eta=1.0)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, *backbone.latent_shape, generator=generator)
    weight = torch.randn(backbone.latent_shape, generator=generator)
    text = backbone.encode(["cat"])
    mean = sampler.mean(1, backbone.predict(latents, sampler.timesteps[1], text, 5.0), latents)
    parameter = backbone.parameters()[-1]
    (exact,) = torch.autograd.grad((weight * mean).sum(), parameter, retain_graph=True)
    noise = torch.randn(count, *backbone.latent_shape, generator=generator)
    values = (mean + sampler.std(1) * noise).detach()
    rewards = (weight * (values - mean.detach())).flatten(1).sum(1)
    # log_prob averages over dimensions, the density sums: multiply back.
    log_probs = sampler.log_prob(1, values, mean) * weight.numel()
    halves = []
    for part in torch.arange(count).split(count // 8):
        surrogate = (rewards[part] * log_probs[part]).mean()
        halves.append(torch.autograd.grad(surrogate, parameter, retain_graph=True)[0])
    estimates = torch.stack(halves)
    error = estimates.mean(0) - exact
    standard = estimates.std(0) / 8**0.5
    assert ((error / standard).abs() < 5).float().mean() > 0.97
    assert estimates.mean(0).flatten() @ exact.flatten() > 0.5 * exact.square().sum()
