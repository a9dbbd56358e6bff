"""DPOK's loss on stored trajectories, its value function, and what they cost."""

import copy

import pytest
import torch
from by_hand import SMALL, TIMESTEPS, World, compare

from benchmarks.api import AdamW, Context
from methods.dpok import DPOK, Config

WHOLE = SMALL | {"timestep_fraction": 1.0, "inner_epochs": 1}


def test_loss_and_gradient_are_those_of_the_equations():
    world = World()
    method = DPOK(Config(**WHOLE, clip=3e-3, kl=0.5, reward_weight=3.0), world.context)
    data = method.round = method.sample(0)
    world.move()

    def loss() -> torch.Tensor:
        rho = (world.log_probs(data, (0, 2)) - data.log_probs).exp()
        near = rho.clamp(1 - 3e-3, 1 + 3e-3)
        assert 0 < int((near != rho).sum()) < 8
        total = -3.0 * (data.advantages * near).sum() / 8
        for i in (0, 2):
            x = data.latents[:, i]
            now, base = (world.eps(x, TIMESTEPS[i], data.prompts, base=b) for b in (False, True))
            total = total + 0.5 * (now - base.detach()).square().mean((1, 2, 3)).sum() / 8
        return total

    compare(world, method, loss)


def test_outside_of_the_clamp_there_is_no_gradient_whatever_the_advantage(context: Context):
    context.backbone.use("latents")
    method = DPOK(Config(**WHOLE, kl=0.0), context)
    method.round = method.sample(0)
    for advantage in (1.0, -1.0):  # PPO's would have one where the advantage is negative
        method.round.advantages = torch.full((4, 2), advantage)
        for shift, moves in ((-1.0, False), (1.0, False), (0.0, True)):
            changed = copy.copy(method.round)
            changed.log_probs = method.round.log_probs + shift
            original, method.round = method.round, changed
            method.learn(0, 0)
            method.round = original
            norm = sum(p.grad.abs().sum() for p in context.backbone.parameters())
            assert bool(norm > 0) == moves
            method.optimizer.adamw.zero_grad()


def value_by_hand(method: DPOK, x: torch.Tensor, text: torch.Tensor, i: int) -> torch.Tensor:
    state = method.value.state_dict()
    hidden = torch.cat([x.flatten(1), text], 1)
    for k in range(3):
        layer = hidden @ state[f"layers.{k}.weight"].T + state[f"layers.{k}.bias"]
        hidden = (state[f"scales.{k}.weight"][i] * layer).clamp(min=0)
    return (hidden @ state["layers.3.weight"].T + state["layers.3.bias"])[:, 0]


def test_advantages_are_rewards_above_the_value_of_the_state(context: Context):
    method = DPOK(Config(**WHOLE), context)
    before = copy.deepcopy(method.value.state_dict())
    data = method.sample(0)
    (tokens,) = context.backbone.encode(data.prompts)
    z = (data.rewards + 0.1) / 0.05
    for column, i in enumerate(method.sampler.scored):
        value = value_by_hand(method, data.latents[:, i], tokens.mean(1), i)
        torch.testing.assert_close(data.advantages[:, column], z - value, rtol=1e-4, atol=1e-5)
    # It has been regressed on the rewards, by so many steps of AdamW on the whole round.
    after = method.value.state_dict()
    assert all(not torch.equal(before[k], after[k]) for k in before if "scales" not in k)
    method.value.load_state_dict(before)
    error = [float(data.advantages.square().mean())]
    for column, i in enumerate(method.sampler.scored):
        value = value_by_hand(method, data.latents[:, i], tokens.mean(1), i)
        data.advantages[:, column] = z - value
    assert error[0] < float(data.advantages.square().mean())


def test_the_ledger_counts_and_prices_the_value_function(context: Context):
    ledger = context.backbone.ledger
    config = Config(**(WHOLE | {"inner_epochs": 2}), value_steps=3, value_optimizer=AdamW(lr=1e-3))
    method = DPOK(config, context)
    ledger.counts.clear()
    method.step(0)
    # 4 pictures, 2 of 3 sampling steps scored: 3 steps of the regression, and the advantages.
    counts = {kind.name: count for kind, count in ledger.counts.items()}
    assert (counts["method_forward"], counts["method_backward"]) == (8 * 4, 8 * 3)
    # Sampling 4 * 3, replay 4 * 2, base model 4 * 2, times two for guidance.
    assert counts["denoiser_forward"] == 2 * (12 + 8 + 8)
    assert counts["denoiser_backward_weights_only"] == 2 * 8
    method.step(1)  # no round is drawn: replay and base model
    assert ledger.totals()["nfe"] == 2 * (12 + 16 + 16)
    width = 4 * 8 * 8 + 16  # latents, and the text's embedding
    matrices = width * 256 + 2 * 256 * 256 + 256
    prices = {kind.name: price for kind, price in ledger.prices.items()}
    assert prices["method_forward"] == 2 * matrices
    assert prices["method_backward"] == pytest.approx(2 * (2 * matrices - width * 256))
