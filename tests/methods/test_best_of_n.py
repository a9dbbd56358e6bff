"""Best of N delivers the candidate with the highest reward, and pays for all of them."""

import pytest
import torch

from benchmarks.api import Context, UserError
from methods.best_of_n import BestOfN, Candidates

SMALL = {"sampling_steps": 3, "guidance": 3.0}


def test_the_best_candidate_is_delivered(context: Context):
    backbone, prompts, pictures = context.backbone, ["cat", "dog"], [4, 7]
    found = BestOfN(Candidates(**SMALL, candidates=3), context).draw(prompts, pictures)
    totals = backbone.ledger.totals()
    assert totals["nfe"] == 2 * 3 * 3 * 2  # two pictures, three candidates, three guided steps
    assert totals["images"] == totals["reward_queries"] == 2 * 3
    assert totals["denoiser_backward"] == totals["reward_gradients"] == 0
    images = []
    for n in range(3):
        noise = context.streams.normal("evaluation", n, pictures, backbone.latent_shape)
        drawn = backbone.sample(backbone.sampler(3), prompts, noise, guidance=3.0)
        images.append(backbone.decode(drawn.final).detach())
    rewards = torch.stack([context.reward(i, prompts).detach() for i in images])
    best = rewards.argmax(0).tolist()
    assert len(set(rewards.flatten().tolist())) == 6
    for row, n in enumerate(best):
        torch.testing.assert_close(found[row], images[n][row])


def test_at_least_one_candidate(context: Context):
    with pytest.raises(UserError, match="choose 1 or more"):
        BestOfN(Candidates(**SMALL, candidates=0), context)
