"""ReFL: one late step carries gradient, and x_0 is the scheduler's prediction."""

import pytest
import torch
from diffusers import DDIMScheduler

from benchmarks.api import Context, UserError
from methods.refl import Config, ReFL

SMALL = {"batch_size": 2, "micro_batch": 2, "sampling_steps": 4, "earliest": 2, "latest": 3}


def test_one_step_with_gradient_per_sample(context: Context):
    method, ledger = ReFL(Config(**SMALL), context), context.backbone.ledger
    chosen = {int(method.step(s).extra["chosen"]) for s in range(12)}
    assert chosen == {2, 3}
    totals = ledger.totals()
    assert totals["denoiser_backward"] == totals["reward_gradients"] == 24


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_x0_is_the_schedulers(context: Context, prediction: str):
    config = dict(context.backbone.scheduler.config) | {"prediction_type": prediction}
    scheduler = DDIMScheduler.from_config(config)
    context.backbone.scheduler = scheduler
    sampler = context.backbone.sampler(4)
    generator = torch.Generator().manual_seed(0)
    latents, output = torch.randn(2, 2, 4, 8, 8, generator=generator)
    theirs = scheduler.step(output, sampler.timesteps[2], latents).pred_original_sample
    torch.testing.assert_close(sampler.x0(2, output, latents), theirs, rtol=1e-4, atol=1e-5)


def test_pretraining_loss_is_added(context: Context):
    plain = ReFL(Config(**SMALL), context).step(0).loss
    assert ReFL(Config(**SMALL, pretrain_weight=1.0), context).step(0).loss > plain + 0.1


def test_the_hinge_stops_at_the_margin(context: Context):
    result = ReFL(Config(**SMALL, margin=-100.0), context).step(0)
    assert result.loss == 0 and result.grad_norm == 0


def test_steps_outside_the_chain_are_refused(context: Context):
    with pytest.raises(UserError, match="sampling steps 0 to 3"):
        ReFL(Config(**(SMALL | {"latest": 4})), context)
