"""D3PO's loss on stored trajectories."""

import torch
from by_hand import SMALL, World, compare

from methods.d3po import D3PO, Config


def test_loss_and_gradient_are_those_of_the_equations():
    world = World()
    method = D3PO(Config(**SMALL, beta=0.7, clip=0.01), world.context)
    data = method.round = method.sample(0)
    world.move(size=0.3)
    kept = []

    def loss() -> torch.Tensor:
        with torch.no_grad():
            base = world.log_probs(data, (0, 2), base=True)
        ratios = (world.log_probs(data, (0, 2)) - base).exp()
        near = ratios.clamp(0.99, 1.01)
        kept.append(int((near == ratios).sum()))
        total = torch.zeros((), dtype=torch.float64)
        for a, b in ((0, 1), (2, 3)):
            h = 1.0 if data.rewards[a] > data.rewards[b] else -1.0
            for column in (0, 1):
                inside = 0.7 * (h * near[a, column].log() - h * near[b, column].log())
                total = total - torch.sigmoid(inside).log() / 4
        return total

    compare(world, method, loss)
    assert 0 < kept[0] < 8  # some ratios are clamped, and some not


def test_what_counts_is_the_order_of_the_rewards(context, gradients):
    for power in (1.0, 3.0):
        paid = context.reward
        object.__setattr__(
            context, "reward", lambda i, p, paid=paid, k=power: -((-paid(i, p)) ** k)
        )
        D3PO(Config(**(SMALL | {"samples_per_round": 8})), context).step(0)
        object.__setattr__(context, "reward", paid)
    assert torch.equal(*gradients) and gradients[0].norm() > 0
