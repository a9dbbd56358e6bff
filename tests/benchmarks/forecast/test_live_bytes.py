"""Bytes are counted as storages are made and dropped."""

import torch

from benchmarks.forecast.live_bytes import Live


def test_live_counts_what_lives():
    start = torch.zeros(100)
    with Live() as live:
        kept = start + 1
        dropped = torch.empty(1000)
        view = kept[10:]
        assert (live.now, live.peak) == (4400, 4400)
        del dropped
        assert (live.now, live.peak) == (400, 4400)
        del kept
        assert live.now == 400  # the view holds it
        del view
        assert live.now == 0


def test_what_was_made_before_does_not_count():
    before = torch.zeros(1000)
    with Live() as live:
        kept = before[500:], before + 1
        assert live.now == 4000
        before.add_(1)
        assert live.now == live.peak == 4000
        del kept
    assert live.now == 0


def test_a_tensor_without_values_gives_ones():
    with Live():
        empty = torch.empty(3, device="meta")
        assert float(empty.sum()) == 1.0
        assert empty.to("cpu").tolist() == [1.0, 1.0, 1.0]
