"""Direct-Align: known noise gives the picture back, and one step's change of it is climbed."""

import pytest
import torch
from derivative import directional, exact

from benchmarks.api import Context, UserError
from methods.direct_align import Config, DirectAlign, each

SMALL = {
    **{"batch_size": 3, "micro_batch": 3, "sampling_steps": 5, "guidance": 3.0},
    **{"earliest": 1, "latest": 3},
}


def test_gradient_equals_finite_differences(context: Context, gradients, compared):
    """Sample by sample, with the scheduler's own products of alphas."""
    exact(context)
    method = DirectAlign(Config(**SMALL), context)
    result = method.step(0)
    backbone, sampler, streams = context.backbone, method.sampler, context.streams
    prompts = context.prompts(0, 3)
    noise = streams.normal("noise", 0, range(3), backbone.latent_shape)
    x0 = backbone.sample(sampler, prompts, noise, guidance=3.0).final
    now = [streams.integer("gradient step", 0, 1, 4, i) for i in range(3)]
    assert len(set(now)) > 1
    alphas = backbone.scheduler.alphas_cumprod.double()

    def loss() -> float:
        total = 0.0
        for n, i in enumerate(now):
            a, b = alphas[sampler.timesteps[i]], alphas[sampler.timesteps[i + 1]]
            x, z, text = x0[n : n + 1], noise[n : n + 1], prompts[n : n + 1]
            x_t = a.sqrt() * x + (1 - a).sqrt() * z
            eps = backbone.predict(x_t, sampler.timesteps[i], backbone.encode(text), 3.0)
            clean = (x_t - (1 - a).sqrt() * eps) / a.sqrt()
            less = b.sqrt() * clean + (1 - b).sqrt() * eps
            x0_hat = (less - (1 - b).sqrt() * z) / b.sqrt()
            total -= float(context.reward(backbone.decode(x0_hat), text))
        return total / 3

    with torch.no_grad():
        assert result.loss == pytest.approx(loss(), rel=1e-6)
    (found,) = gradients
    derivative, direction = directional(context, loss, found)
    compared("derivative", found @ direction, derivative, 1e-5)


def test_a_denoiser_that_knows_the_noise_changes_nothing(context: Context):
    sampler = context.backbone.sampler(5)
    x0, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    now = [0, 1, 3]
    latents = each(sampler.renoised, now, x0, noise)
    after = each(sampler.mean, now, noise, latents)  # the tiny model predicts the noise
    found = each(sampler.denoised, [i + 1 for i in now], after, noise)
    torch.testing.assert_close(found, x0, rtol=1e-3, atol=1e-4)


def test_every_pass_is_counted(context: Context):
    ledger = context.backbone.ledger
    DirectAlign(Config(**SMALL), context).step(0)
    totals, counts = ledger.totals(), {kind.name: n for kind, n in ledger.counts.items()}
    assert totals["nfe"] == 3 * 2 * (5 + 1)
    assert counts["denoiser_backward_weights_only"] == totals["denoiser_backward"] == 3 * 2
    assert totals["images"] == totals["reward_queries"] == totals["reward_gradients"] == 3


def test_steps_outside_are_refused(context: Context):
    for changes in ({"latest": 4}, {"earliest": 3, "latest": 2}):
        with pytest.raises(UserError, match="the sampling steps but the last, 0 to 3"):
            DirectAlign(Config(**(SMALL | changes)), context)
