"""Diffusion-DPO's loss on stored pictures."""

import torch
from by_hand import SMALL, World, compare

from benchmarks.api import Context
from methods.diffusion_dpo import Config, DiffusionDPO


def test_loss_and_gradient_are_those_of_the_equations():
    world = World()
    method = DiffusionDPO(Config(**SMALL, beta=50.0), world.context)
    data = method.round = method.sample(0)
    world.move()
    streams = world.context.streams

    def loss() -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for a, b in ((0, 1), (2, 3)):
            winner, loser = (a, b) if data.rewards[a] > data.rewards[b] else (b, a)
            noise = streams.normal("renoising", 0, [a], (4, 8, 8))  # the same for both, and t too
            t = streams.integer("timestep", 0, 0, 1000, a)
            noise_part, picture_part = (1 - world.alpha_bar[t]).sqrt(), world.alpha_bar[t].sqrt()
            (text,) = world.backbone.encode([data.prompts[a]])

            def error(unet, row, x=None, text=text, noise=noise, t=t, p=picture_part, n=noise_part):
                noisy = p * data.latents[row : row + 1, -1] + n * noise
                return (unet(noisy, t, encoder_hidden_states=text).sample - noise).square().mean()

            trained, base = world.backbone.denoiser, world.base
            w, lo = (error(trained, row) - error(base, row).detach() for row in (winner, loser))
            total = total - torch.sigmoid(-50.0 / 2 * (w - lo)).log() / 2
        return total

    compare(world, method, loss)


def test_counts_are_known(context: Context):
    """Guidance counts two in sampling; the loss has none, and asks the base model too."""
    ledger = context.backbone.ledger
    method = DiffusionDPO(Config(**(SMALL | {"inner_epochs": 2})), context)
    ledger.counts.clear()
    method.step(0)
    totals = ledger.totals()
    assert (totals["nfe"], totals["denoiser_backward"]) == (4 * 3 * 2 + 4 + 4, 4)
    method.step(1)
    assert (ledger.totals()["nfe"], ledger.totals()["reward_queries"]) == (24 + 16, 4)
