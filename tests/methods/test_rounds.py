"""Rounds: who is compared with whom, who starts from the same noise, and advantages of groups."""

from dataclasses import replace

import pytest
import torch

from benchmarks.api import Context, UserError
from methods._rounds import StepRounds, dpo_loss, group_advantages, preferences
from methods.d3po import D3PO
from methods.d3po import Config as Pairs
from methods.diffusion_nft import Config as Nft
from methods.diffusion_nft import DiffusionNFT
from methods.grpo import GRPO
from methods.grpo import Config as Groups

ROUND = {"samples_per_round": 8, "updates_per_round": 2, "micro_batch": 2, "sampling_steps": 3}
REWARDS = torch.tensor([1.0, 3.0, 2.0, 6.0, 5.0, 5.0, 5.0, 5.0])


def test_a_group_shares_its_noise_where_the_source_does_and_its_pictures_differ(context: Context):
    for cls, config, together in (
        (GRPO, Groups(**ROUND, samples_per_prompt=4), 4),
        (D3PO, Pairs(**ROUND, samples_per_prompt=4), 2),
    ):
        data = cls(config, context).sample(0)
        start, final = (data.latents[:, i].flatten(1) for i in (0, -1))
        for row in range(8):
            first = row - row % together
            assert torch.equal(start[row], start[first])
            assert row == first or not torch.allclose(final[row], final[first])
        assert not torch.allclose(start[0], start[together])
        assert data.prompts == ["cat"] * 4 + ["dog"] * 4
    free = DiffusionNFT(Nft(**ROUND, samples_per_prompt=4), context).sample(0)
    assert len(free.latents.flatten(1).unique(dim=0)) == 8 and free.latents.shape[1] == 1


def test_pairs_stay_together_in_every_pass(context: Context):
    method = D3PO(Pairs(**ROUND, samples_per_prompt=2, inner_epochs=2), context)
    for phases in ((0, 1), (2, 3)):
        batches = [method.batch(step, step) for step in phases]
        assert sorted(row for rows in batches for row in rows) == list(range(8))
        for rows in batches:
            assert all(
                a + 1 == b and a % 2 == 0 for a, b in zip(rows[::2], rows[1::2], strict=True)
            )
            assert method.parts(rows) == [rows[:2], rows[2:]]
    assert [method.batch(step, step) for step in (0, 1)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_advantages_of_a_group_know_neither_scale_nor_level():
    found = group_advantages(REWARDS, 4)
    first = REWARDS[:4]
    torch.testing.assert_close(found[:4], (first - first.mean()) / first.std())
    assert torch.equal(found[4:], torch.zeros(4))  # all alike
    for changed in (1e-4 * REWARDS, 1e3 * REWARDS, 5 * REWARDS - 200):
        torch.testing.assert_close(group_advantages(changed, 4), found, rtol=2e-3, atol=1e-6)
    assert torch.equal(group_advantages(torch.full((16,), 0.1), 16), torch.zeros(16))
    whole = group_advantages(REWARDS, 4, spread="round")
    torch.testing.assert_close(whole[:4], (first - first.mean()) / REWARDS.std(correction=0))


def test_pairs_are_antisymmetric():
    rewards = torch.tensor([1.0, 3.0, 2.0, 2.0])
    assert preferences(rewards).tolist() == [-1.0, 1.0, 0.0, 0.0]
    scores = torch.randn(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    there, back = (dpo_loss(scores, preferences(r)) for r in (rewards, -rewards))
    # sigmoid(m) + sigmoid(-m) = 1, and a tie teaches nothing.
    torch.testing.assert_close((-there).exp() + (-back).exp(), torch.ones(2).double())
    better = float((-there).exp()[0])
    assert better == pytest.approx(float(torch.sigmoid(scores[1] - scores[0])))
    assert float(there[1]) == pytest.approx(float(torch.tensor(2.0).log()))


def test_rewards_that_are_all_alike_say_so(context: Context):
    silent = replace(context, reward=lambda images, prompts: torch.ones(len(images)))
    config = Groups(**ROUND, samples_per_prompt=4)
    assert not GRPO(config, silent).step(0).informative
    assert GRPO(config, context).step(0).informative


def test_impossible_configurations_are_refused(context: Context):
    cases = [
        (GRPO, Groups(**ROUND, samples_per_prompt=1), "at least 2: pictures are compared"),
        (GRPO, Groups(**ROUND, samples_per_prompt=3), "samples_per_prompt"),
        (D3PO, Pairs(**(ROUND | {"micro_batch": 1})), "micro_batch must be a multiple of 2"),
        (D3PO, Pairs(**(ROUND | {"samples_per_round": 9})), "updates_per_round"),
        (DiffusionNFT, Nft(**ROUND, samples_per_prompt=4, timestep_fraction=2.0), "fraction"),
    ]
    for cls, config, message in cases:
        with pytest.raises(UserError, match=message):
            cls(config, context)


def test_of_few_sampling_steps_one_is_still_trained():
    config = StepRounds(sampling_steps=50, timestep_fraction=0.08)
    assert config.trained(50) == 4 and config.resampled(4).trained(3) == 1
