"""AlignProp: its gradient is the derivative of the objective, for every truncation."""

import pytest
import torch

from benchmarks.api import Context, Keep, UserError
from methods.alignprop import AlignProp, Config, Truncation

SMALL = {"batch_size": 2, "micro_batch": 2, "sampling_steps": 4, "guidance": 3.0, "loss_scale": 1.0}


def double(context: Context) -> None:
    backbone = context.backbone
    for module in backbone.modules():
        module.double()
    backbone._conditions.clear()
    normal = context.streams.normal
    context.streams.normal = lambda *a: normal(*a).double()  # type: ignore[method-assign]


def gradient(context: Context, truncation: Truncation, keep: Keep, **changes) -> torch.Tensor:
    context.backbone.use(keep)
    method = AlignProp(Config(**(SMALL | changes), truncation=truncation), context)
    captured: list[torch.Tensor] = []

    def capture() -> float:
        captured.extend(p.grad.clone().flatten() for p in method.optimizer.parameters)
        for p in method.optimizer.parameters:
            p.grad = None
        return 0.0

    method.optimizer.step = capture  # type: ignore[method-assign]
    method.step(0)
    return torch.cat(captured)


def objective(context: Context, mask: list[bool], offset: torch.Tensor) -> float:
    """The mean reward where only the masked sampling steps see the LoRA weights moved."""
    backbone, streams = context.backbone, context.streams
    sampler, parameters = backbone.sampler(4), backbone.parameters()

    def move(sign: float) -> None:
        start = 0
        for p in parameters:
            p.data += sign * offset[start : start + p.numel()].view_as(p)
            start += p.numel()

    prompts = context.prompts(0, 2)
    text = backbone.encode(prompts)
    latents = streams.normal("noise", 0, range(2), backbone.latent_shape)
    with torch.no_grad():
        for i, timestep in enumerate(sampler.timesteps):
            if mask[i]:
                move(1.0)
            output = backbone.predict(latents, timestep, text, 3.0)
            if mask[i]:
                move(-1.0)
            latents = sampler.mean(i, output, latents)
        return float(context.reward(backbone.decode(latents), prompts).mean())


@pytest.mark.parametrize("keep", ["all", "blocks"])
@pytest.mark.parametrize(
    "truncation",
    [Truncation(mode="full"), Truncation(mode="fixed", k=2), Truncation(mode="per_trajectory")],
    ids=lambda t: t.mode,
)
def test_gradient_equals_finite_differences(context, truncation, keep, compared):
    double(context)
    found = gradient(context, truncation, keep)
    mask = AlignProp(Config(**SMALL, truncation=truncation), context).gradient_steps(0)
    assert any(mask)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(3)).double()
    direction /= direction.norm()
    h = 1e-4
    ahead, behind = (objective(context, mask, s * h * direction) for s in (1, -1))
    expected = -(ahead - behind) / (2 * h)  # the loss is minus the reward
    compared("derivative", found @ direction, torch.tensor(expected), 1e-5)


def test_per_step_detaches_predictions_only(context):
    """A dropped prediction still passes gradient through the latents around it."""
    double(context)
    truncation = Truncation(mode="per_step")
    method = AlignProp(Config(**SMALL, truncation=truncation), context)
    method.gradient_steps = lambda step: [True, False, False, True]  # type: ignore[method-assign]
    captured = []
    method.optimizer.step = lambda: (
        captured.append(  # type: ignore[method-assign,func-returns-value]
            torch.cat([p.grad.flatten() for p in method.optimizer.parameters])
        )
        or 0.0
    )
    method.step(0)
    sampler, backbone = method.sampler, context.backbone
    prompts, text = context.prompts(0, 2), backbone.encode(context.prompts(0, 2))
    latents = context.streams.normal("noise", 0, range(2), backbone.latent_shape)
    for i, timestep in enumerate(sampler.timesteps):
        output = backbone.predict(latents, timestep, text, 3.0)
        latents = sampler.mean(i, output if i in (0, 3) else output.detach(), latents)
    loss = -context.reward(backbone.decode(latents), prompts).mean()
    expected = torch.autograd.grad(loss, backbone.parameters())
    torch.testing.assert_close(captured[0], torch.cat([g.flatten() for g in expected]))


def test_which_steps_carry_gradient(context):
    def steps(count: int = 4, **choice) -> list[list[bool]]:
        config = Config(**(SMALL | {"sampling_steps": count}), truncation=Truncation(**choice))
        method = AlignProp(config, context)
        return [method.gradient_steps(s) for s in range(300)]

    assert all(all(mask) for mask in steps(mode="full"))
    assert all(mask == [False, False, False, True] for mask in steps(mode="fixed", k=1))
    drawn = steps(mode="per_trajectory")
    assert {sum(mask) for mask in drawn} == {0, 1, 2, 3, 4}
    assert all(mask == sorted(mask) for mask in drawn)  # only final steps
    share = torch.tensor(steps(mode="per_step")).float().mean(0)
    expected = torch.tensor([1, 2, 3, 4]) / 5  # released code: (i + 1) / (T + 1)
    assert (share - expected).abs().max() < 4 * (0.25 / 300) ** 0.5
    assert all(1 <= sum(mask) <= 3 for mask in steps(mode="normal", mean=2.0))


def test_gradient_does_not_depend_on_the_split(context):
    full = Truncation(mode="full")
    whole = gradient(context, full, "all", batch_size=4, micro_batch=4)
    split = gradient(context, full, "all", batch_size=4, micro_batch=1)
    torch.testing.assert_close(whole, split, rtol=1e-3, atol=1e-6)


def test_target_is_approached(context):
    config = Config(**SMALL, truncation=Truncation(mode="full"), target=0.0)
    assert AlignProp(config, context).step(0).loss > 0


def test_k_larger_than_the_chain_is_refused(context):
    with pytest.raises(UserError, match=r"truncation\.k is 9, but there are 4"):
        AlignProp(Config(**SMALL, truncation=Truncation(mode="fixed", k=9)), context)


def test_it_climbs(context):
    method = AlignProp(Config(**SMALL, truncation=Truncation(mode="full")), context)
    rewards = [method.step(0).reward for _ in range(12)]
    assert rewards[-1] > rewards[0]
