"""PRDP's loss on stored trajectories."""

import torch
from by_hand import SMALL, World, compare

from methods.prdp import PRDP, Config


def test_loss_and_gradient_are_those_of_the_equations():
    world = World()
    method = PRDP(Config(**SMALL, beta=20.0, clip=1e-3), world.context)
    data = method.round = method.sample(0)
    world.move(size=0.1)
    larger = []

    def loss() -> torch.Tensor:
        with torch.no_grad():
            base = world.log_probs(data, (0, 2), base=True)
        ratios = world.log_probs(data, (0, 2)) - base
        old = data.log_probs - base
        near = torch.minimum(torch.maximum(ratios, old - 1e-3), old + 1e-3)
        z = (data.rewards + 0.1) / 0.05
        total = torch.zeros((), dtype=torch.float64)
        for a, b in ((0, 1), (2, 3)):
            free, held = (
                (20.0 * (r[a].sum() - r[b].sum()) - (z[a] - z[b])) ** 2 for r in (ratios, near)
            )
            larger.append(bool(free > held))
            total = total + torch.maximum(free, held) / 2
        return total

    compare(world, method, loss)
    assert (data.log_probs - world.log_probs(data, (0, 2))).abs().max() > 1e-3


def test_the_policy_that_predicts_differences_has_no_loss():
    """Where beta l is z up to what the prompt decides, nothing is left to learn."""
    world = World()
    method = PRDP(Config(**SMALL, beta=2.0, clip=1e3), world.context)
    data = method.round = method.sample(0)
    assert data.reference is not None
    log_ratios = (data.log_probs - data.reference).sum(1)
    data.advantages = 2.0 * log_ratios + torch.tensor([5.0, 5.0, -3.0, -3.0])
    loss, _ = method.learn(0, 0)
    assert loss < 1e-20
    assert all(p.grad.abs().max() < 1e-9 for p in world.backbone.parameters())
