"""RWR: weights average 1; the loss is the weighted denoising loss."""

import dataclasses

import pytest
import torch

from benchmarks.api import Context, UserError
from methods.rwr import RWR, Config, weights

PROMPTS = ["cat", "dog", "cat", "dog", "cat", "cat", "dog", "dog", "cat", "dog"]


def test_weights_average_one_over_the_set_and_within_each_prompt():
    rewards = torch.randn(10, generator=torch.Generator().manual_seed(0))
    whole = weights(rewards, PROMPTS, beta=0.7, scope="set", sparse=None)
    torch.testing.assert_close(whole.mean(), torch.tensor(1.0))
    torch.testing.assert_close((whole[1] / whole[0]).log(), 0.7 * (rewards[1] - rewards[0]))
    each = weights(rewards, PROMPTS, beta=0.7, scope="prompt", sparse=None)
    for prompt in ("cat", "dog"):
        rows = [i for i, p in enumerate(PROMPTS) if p == prompt]
        torch.testing.assert_close(each[rows].mean(), torch.tensor(1.0))
        ratio = (each[rows[1]] / each[rows[0]]).log()
        spread = rewards[rows].std(correction=0)
        torch.testing.assert_close(ratio, 0.7 * (rewards[rows[1]] - rewards[rows[0]]) / spread)


def test_weights_within_prompts_know_neither_unit_nor_the_prompts_level():
    rewards = torch.randn(10, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([100.0 if p == "dog" else 0.0 for p in PROMPTS])
    expected = weights(rewards, PROMPTS, beta=1.0, scope="prompt", sparse=None)
    shifted = weights(0.001 * rewards + level, PROMPTS, beta=1.0, scope="prompt", sparse=None)
    torch.testing.assert_close(shifted, expected, rtol=0.05, atol=0.0)


def test_rewards_that_are_all_alike_weigh_alike_and_say_so(context: Context):
    alike = weights(torch.ones(10), PROMPTS, beta=1.0, scope="prompt", sparse=None)
    assert torch.equal(alike, torch.ones(10))
    silent = dataclasses.replace(context, reward=lambda images, prompts: torch.ones(len(images)))
    config = Config(
        samples_per_round=4, samples_per_prompt=2, batch_size=4, micro_batch=2, sampling_steps=3
    )
    assert not RWR(config, silent).step(0).informative
    assert RWR(config, context).step(0).informative


def test_sparse_keeps_its_share_of_each_prompt():
    rewards = torch.arange(10.0)
    kept = weights(rewards, PROMPTS, beta=1.0, scope="set", sparse=0.4)
    assert kept.nonzero().flatten().tolist() == [5, 7, 8, 9]
    torch.testing.assert_close(kept.mean(), torch.tensor(1.0))


def test_the_best_fitting_prediction_has_no_loss(context: Context):
    method = RWR(
        Config(
            samples_per_round=4, samples_per_prompt=2, batch_size=4, micro_batch=2, sampling_steps=3
        ),
        context,
    )
    method.round = method.sample(0)
    backbone, streams = context.backbone, context.streams
    noise = streams.normal("regression", 0, [0, 1], backbone.latent_shape)
    answers = iter([noise, noise + 1])
    backbone.predict = lambda *_, **__: next(answers).requires_grad_()  # type: ignore[method-assign]
    assert method.backward(0, [0, 1], 2) == pytest.approx(0.0)
    expected = float(method.round.weights[:2].mean())
    assert method.backward(0, [0, 1], 2) == pytest.approx(expected)


def test_a_batch_larger_than_its_round_is_refused(context: Context):
    with pytest.raises(UserError, match="batch_size is 16, but a round has only"):
        RWR(Config(samples_per_round=8, batch_size=16), context)
