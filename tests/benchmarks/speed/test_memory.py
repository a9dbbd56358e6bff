"""SD v1.5's peak memory by the planner, and beside a measurement."""

import pytest

from benchmarks.speed import memory


@pytest.mark.slow
def test_the_planner_agrees_with_a_model_of_the_shape_of_sd15():
    for found in memory.check(steps=2)["keep"].values():
        assert found["planned_bytes"] == pytest.approx(found["measured_bytes"], rel=0.1)


def test_the_plan_is_for_fifty_steps_of_half_precision_and_counts_the_weights(monkeypatch):
    class Model:
        def __init__(self, name: str, precision: str) -> None:
            assert (name, precision) == ("sd15", "fp16")
            self.frozen_bytes = 1000.0

    monkeypatch.setattr(memory, "MetaModel", Model)
    planned = {"latents": 2, "blocks": 1}
    monkeypatch.setattr(memory, "_peak", lambda model, keep, steps: planned[keep] * steps)
    monkeypatch.setattr(memory, "check", lambda: "checked")
    found = memory.measure()
    assert found["planned_bytes"] == {"latents": 1100.0, "blocks": 1050.0}
    assert (found["frozen_bytes"], found["check"]) == (1000.0, "checked")
