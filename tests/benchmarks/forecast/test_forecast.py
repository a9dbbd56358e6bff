"""A plan is counts times prices, and a budget over them."""

import pytest

from benchmarks.backbone.checkpointing import KEEPS
from benchmarks.compute.budget import Budget
from benchmarks.conformance import contract
from benchmarks.forecast import dry_run, forecast
from benchmarks.forecast.meta_model import MetaModel


def test_a_plan_is_counts_times_prices(tiny_meta: MetaModel, tiny_contract: None, monkeypatch):
    monkeypatch.setattr(dry_run, "STEPS", 2)
    config = contract.small_config("alignprop-full")  # 4 samples, 4 sampling steps, guided
    plan = forecast.plan("alignprop-full", config, tiny_meta, Budget("queries", 10))
    guided = 2 if config.guidance > 1 else 1
    assert plan["nfe_per_step"] == 4 * 4 * guided
    assert (plan["reward_queries_per_step"], plan["images_per_step"]) == (4, 4)
    assert plan["reward_gradients_per_step"] == 4
    assert plan["trainable_parameters"] == tiny_meta.trainable and tuple(plan["keep"]) == KEEPS
    for keep in KEEPS:
        found = plan["keep"][keep]
        assert (found["steps_in_budget"], found["reward_queries_in_budget"]) == (2, 8)
        assert found["flops_per_step"] == pytest.approx(sum(found["flops_by_part"].values()))
        work = 2 * found["flops_per_step"]
        hours = work / (0.4 * 312e12) / 3600
        assert found["hours"]["A100 80 GB"] == pytest.approx(hours)
    forward = next(v for k, v in tiny_meta.prices.items() if k.name == "denoiser_forward")
    all_parts = plan["keep"]["all"]["flops_by_part"]
    assert all_parts["denoiser_forward"] == pytest.approx(16 * guided * forward)
    assert "denoiser_recompute" not in all_parts
    repeated = plan["keep"]["latents"]["flops_by_part"]["denoiser_recompute"]
    assert repeated == pytest.approx(16 * guided * forward)
