"""DiffusionNFT's loss on stored pictures, its old policy, and its two branches."""

import torch
from by_hand import SMALL, TIMESTEPS, World, compare

from benchmarks.api import Context
from methods.diffusion_nft import Config, DiffusionNFT


def test_loss_and_gradient_are_those_of_the_equations():
    world = World()
    settings = {"beta": 0.3, "kl": 0.2, "max_advantage": 0.25}
    method = DiffusionNFT(Config(**SMALL, **settings), world.context)
    data = method.round = method.sample(0)
    world.move(size=0.2)
    streams, parameters = world.context.streams, world.backbone.parameters()

    def loss() -> torch.Tensor:
        groups = data.rewards.view(2, 2)
        deviation = data.rewards.std(correction=0) + 1e-8
        advantages = ((groups - groups.mean(1, True)) / deviation).flatten()
        assert advantages.abs().max() > 0.25
        q = (advantages / 0.25).clamp(-1, 1) / 2 + 0.5
        noise = streams.normal("renoising", 0, range(4), (3, 4, 8, 8))
        total = torch.zeros((), dtype=torch.float64)
        for i, t in enumerate(TIMESTEPS):
            a, x0 = world.alpha_bar[t], data.latents[:, -1]
            x = a.sqrt() * x0 + (1 - a).sqrt() * noise[:, i]
            now = [p.data for p in parameters]
            for parameter, value in zip(parameters, method.old, strict=True):
                parameter.data = value
            old = world.eps(x, t, data.prompts).detach()
            for parameter, value in zip(parameters, now, strict=True):
                parameter.data = value
            v, base = world.eps(x, t, data.prompts), world.eps(x, t, data.prompts, base=True)
            for share, mixed in ((q, 0.3 * v + 0.7 * old), (1 - q, 1.3 * old - 0.3 * v)):
                error = world.x0(x, t, mixed) - x0
                weight = error.detach().abs().mean((1, 2, 3))
                branch = share * error.square().mean((1, 2, 3)) / weight
                total = total + 0.25 / 0.3 * branch.sum() / 12
            total = total + 0.2 * (v - base.detach()).square().mean((1, 2, 3)).sum() / 12
        return total

    compare(world, method, loss)


def test_the_branches_meet_at_the_old_policy_and_pull_apart():
    """There the loss is the same for good and bad pictures, and the gradients are opposite."""
    world = World()
    method = DiffusionNFT(Config(**SMALL, kl=0.0), world.context)
    data = method.round = method.sample(0)
    found = []
    for advantage in (9.0, -9.0):
        data.advantages = torch.full((4,), advantage)
        loss, _ = method.learn(0, 0)
        found.append((loss, torch.cat([p.grad.flatten() for p in world.backbone.parameters()])))
        method.optimizer.adamw.zero_grad()
    (good, towards), (bad, away) = found
    assert abs(good - bad) < 1e-12 * good and towards.norm() > 0
    assert (towards + away).norm() < 1e-9 * towards.norm()


def test_the_old_policy_draws_and_follows(context: Context):
    backbone = context.backbone
    method = DiffusionNFT(Config(**(SMALL | {"inner_epochs": 2}), decay_rate=0.1), context)
    first = [value.clone() for value in method.old]
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.3
    elsewhere = DiffusionNFT(method.config, context).sample(0)
    data = method.sample(0)
    assert not torch.allclose(data.latents, elsewhere.latents, atol=1e-3)
    ledger = backbone.ledger
    ledger.counts.clear()
    method.step(0)
    # Guidance counts two: sampling, then trained, old and base model at 3 sampling steps.
    assert ledger.totals()["nfe"] == 2 * (4 * 3 + 3 * 4 * 3)
    assert ledger.totals()["denoiser_backward"] == 2 * 4 * 3
    assert all(torch.equal(a, b) for a, b in zip(method.old, first, strict=True))
    method.step(1)  # the round ends: d = min(0.1 * 2, 0.5)
    for old, before, now in zip(method.old, first, backbone.parameters(), strict=True):
        torch.testing.assert_close(old, 0.2 * before + 0.8 * now.detach())
