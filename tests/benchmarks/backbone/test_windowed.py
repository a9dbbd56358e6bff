"""A sampler with noise in some steps only: each step is one of the two samplers'."""

import torch
from flow_toy import FlowToy

from benchmarks.api import Sampler
from benchmarks.compute.ledger import Ledger


def test_each_step_is_that_of_one_sampler(backbone):
    for model in (backbone, FlowToy(Ledger())):
        stochastic, plain = model.sampler(5, 1.0), model.sampler(5)
        mixed: Sampler = model.windowed(stochastic, (1, 2))
        latents, output, noise = torch.randn(3, 2, *model.latent_shape)
        assert len(mixed) == 5 and mixed.eta == 1.0
        assert list(mixed.timesteps) == list(stochastic.timesteps)
        assert set(mixed.scored) == {1, 2} & set(stochastic.scored) and mixed.scored
        for i in range(5):
            of = stochastic if i in (1, 2) else plain
            assert mixed.std(i) == of.std(i) and (mixed.std(i) > 0) == (i in (1, 2))
            for name in ("mean", "x0", "noise", "renoised"):
                arguments = (i, output, noise if name == "renoised" else latents)
                assert torch.equal(getattr(mixed, name)(*arguments), getattr(of, name)(*arguments))
        mean = mixed.mean(1, output, latents)
        assert torch.equal(mixed.log_prob(1, noise, mean), stochastic.log_prob(1, noise, mean))
