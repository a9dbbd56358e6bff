"""DRaFT: gradients are the derivatives of what is climbed, and extra pictures are counted."""

import pytest
import torch
from derivative import directional, exact

from benchmarks.api import Context, UserError
from methods import alignprop
from methods.draft import Config, DRaFT

SMALL = {"batch_size": 2, "micro_batch": 2, "sampling_steps": 4, "guidance": 3.0}


def test_draft_k_is_alignprop_with_k_fixed(context: Context, gradients):
    exact(context)
    DRaFT(Config(**SMALL, k=2), context).step(0)
    same = alignprop.Truncation(mode="fixed", k=2)
    alignprop.AlignProp(alignprop.Config(**SMALL, truncation=same, loss_scale=1.0), context).step(0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("k", "renoised", "kl"), [(2, 0, 0.7), (1, 2, 0.0)])
def test_gradient_equals_finite_differences(
    context: Context, gradients, compared, k: int, renoised: int, kl: float
):
    exact(context)
    method = DRaFT(Config(**SMALL, k=k, renoised=renoised, kl=kl), context)
    result = method.step(0)
    backbone, sampler, streams = context.backbone, method.sampler, context.streams
    prompts, condition = context.prompts(0, 2), backbone.encode(context.prompts(0, 2))

    def predicted(i: int, latents: torch.Tensor) -> torch.Tensor:
        return backbone.predict(latents, sampler.timesteps[i], condition, 3.0)

    def score(latents: torch.Tensor) -> torch.Tensor:
        return context.reward(backbone.decode(latents), prompts).mean()

    with torch.no_grad():
        start = streams.normal("noise", 0, range(2), backbone.latent_shape)
        for i in range(4 - k):
            start = sampler.mean(i, predicted(i, start), start)
        end, base = start, {}  # the base model's predictions pass no gradient on to the latents
        for i in range(4 - k, 4):
            with backbone.adapting(False):
                base[i] = predicted(i, end)
            end = sampler.mean(i, predicted(i, end), end)
    again = [
        sampler.renoised(
            3, end, streams.normal(f"renoised {n}", 0, range(2), backbone.latent_shape)
        )
        for n in range(renoised)
    ]

    def loss() -> float:
        latents, distance = start, 0.0
        for i in range(4 - k, 4):
            output = predicted(i, latents)
            distance += float((output - base[i]).square().mean()) / k  # the tiny model's are noise
            latents = sampler.mean(i, output, latents)
        rewards = [score(latents), *(score(sampler.mean(3, predicted(3, x), x)) for x in again)]
        return float(kl * distance - torch.stack(rewards).mean())

    with torch.no_grad():
        assert result.loss == pytest.approx(loss(), rel=1e-9)
    (found,) = gradients
    derivative, direction = directional(context, loss, found)
    compared("derivative", found @ direction, derivative, 1e-5)


def test_every_pass_is_counted(context: Context):
    ledger = context.backbone.ledger
    DRaFT(Config(**SMALL, renoised=2), context).step(0)
    totals = ledger.totals()
    assert totals["nfe"] == 2 * 2 * (4 + 2)  # two samples, guidance, four steps and two more
    assert totals["denoiser_backward"] == 2 * 2 * (1 + 2)
    assert totals["images"] == totals["reward_queries"] == totals["reward_gradients"] == 2 * 3
    before = totals
    DRaFT(Config(**SMALL, k=3, kl=1.0), context).step(0)
    after = ledger.totals()
    assert after["nfe"] - before["nfe"] == 2 * 2 * (4 + 3)  # the base model's at three steps
    assert after["denoiser_backward"] - before["denoiser_backward"] == 2 * 2 * 3
    assert after["reward_queries"] - before["reward_queries"] == 2


def test_what_cannot_be_is_refused(context: Context):
    for changes, message in (({"k": 5}, "choose 1 to sampling_steps, 4"),):
        with pytest.raises(UserError, match=message):
            DRaFT(Config(**SMALL, **changes), context)
