"""NaN and infinity stay out of the weights, are counted, and end the cell beyond a limit."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from benchmarks.api import StepResult
from benchmarks.compute.ledger import Ledger
from benchmarks.harness import guard as guarding
from benchmarks.harness.guard import Guard, NotFinite
from benchmarks.optim import AdamW, Optimizer


def guard(values: list[float]) -> Guard:
    """Over a reward that multiplies the brightness of each picture."""
    factors = torch.tensor(values)
    return Guard(Ledger(), "toy", lambda images, prompts: factors * images.mean((1, 2, 3)))


def test_a_reward_that_is_not_finite_counts_as_average_and_has_no_gradient():
    images = torch.ones(3, 2, 1, 1, requires_grad=True)
    watched = guard([1.0, float("nan"), 3.0])
    values = watched.reward(images * 1, ["a", "b", "c"])
    assert values.tolist() == [1.0, 2.0, 3.0]
    values.sum().backward()
    assert images.grad.flatten(1).tolist() == [[0.5, 0.5], [0.0, 0.0], [1.5, 1.5]]
    assert watched.ledger.skipped == 1 and watched.seen == ["reward 'toy' of prompt 'b' is nan"]


def test_a_gradient_that_is_not_finite_is_left_out():
    def root(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.sum((1, 2, 3)).sqrt()  # infinite slope at 0

    watched = Guard(Ledger(), "root", root)
    start = torch.tensor([0.0, 4.0], requires_grad=True)
    values = watched.reward(start[:, None, None, None] * torch.ones(2, 1, 1, 1), ["black", "grey"])
    values.sum().backward()
    assert start.grad.tolist() == [0.0, 0.25]
    assert watched.seen == ["gradient of reward 'root' of prompt 'black' is inf"]


def test_finite_rewards_pass_unchanged():
    watched, images = guard([1.0, 2.0]), torch.rand(2, 3, 4, 4)
    values = watched.reward(images, ["a", "b"])
    assert torch.equal(values, torch.tensor([1.0, 2.0]) * images.mean((1, 2, 3)))
    assert watched.ledger.totals()["skipped"] == 0


def test_an_update_that_is_not_finite_is_left_out():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = Optimizer(AdamW(lr=0.1), [parameter])
    parameter.grad = torch.tensor([1.0, float("inf")])
    watched, norm = guard([]), optimizer.step()
    assert parameter.tolist() == [1.0, 1.0] and parameter.grad is None
    watched.prompts = ["cat"]
    watched.check(4, StepResult(reward=0.5, loss=0.0, grad_norm=norm))
    assert watched.ledger.skipped == 1
    parameter.grad = torch.ones(2)
    optimizer.step()
    assert parameter.tolist() != [1.0, 1.0]


def test_too_many_name_step_prompt_and_reward():
    watched = guard([float("-inf")])
    result = StepResult(reward=0.0, loss=0.0, grad_norm=1.0)
    for step in range(guarding.LIMIT):
        watched.reward(torch.ones(1, 1, 1, 1), ["cat"])
        watched.check(step, result)
    watched.reward(torch.ones(1, 1, 1, 1), ["dog"])
    with pytest.raises(NotFinite, match=r"step 20: reward 'toy' of prompt 'dog' is -inf; 21 skip"):
        watched.check(guarding.LIMIT, result)
