"""The paper's memory figures for SD v1.5, recomputed."""

import pytest

from benchmarks.forecast import forecast
from benchmarks.forecast.ladder import ladder
from benchmarks.forecast.meta_model import MetaModel


@pytest.mark.slow
def test_the_papers_ladder():
    """SD v1.5, one guided prediction, 16 bits, attention probabilities kept."""
    model = MetaModel("sd15", "fp16")
    rungs = ladder(model)
    assert model.trainable == 797_184
    assert rungs["stored_per_sampling_step"] / forecast.GIB == pytest.approx(7.2, abs=0.1)
    assert rungs["stored_all"] / forecast.GIB == pytest.approx(358, rel=0.02)
    assert rungs["recomputed_per_sampling_step"] / forecast.GIB == pytest.approx(9.04, abs=0.1)
    assert rungs["recomputed_inside"] / forecast.GIB == pytest.approx(3.31, abs=0.1)
    # Attention in closed form, 4 n m c: five blocks at each of three levels, one in the middle.
    levels = [(4096, 320, 5), (1024, 640, 5), (256, 1280, 5), (64, 1280, 1)]
    attention = sum(blocks * 4 * n * (n + 77) * c for n, c, blocks in levels)
    dense = 2 * 339e9  # multiply-adds without attention products (BK-SDM, arXiv 2305.15798)
    assert rungs["flops_guided_forward"] == pytest.approx(2 * (dense + attention), rel=0.01)
