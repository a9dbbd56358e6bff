"""Timing in turns: rounds, ratios and peaks."""

import torch

from benchmarks.speed import clock


def test_ratios_are_taken_within_rounds():
    seconds = {"one": [2.0, 30.0, 4.0], "other": [1.0, 10.0, 4.0]}
    assert clock.ratio(seconds, "one", "other") == {"median": 2.0, "least": 1.0, "most": 3.0}


def test_contenders_take_turns_and_the_first_round_does_not_count(monkeypatch):
    ran: list[str] = []
    spent = iter([100.0, 100.0, 1.0, 2.0, 3.0, 4.0])

    def timed(run) -> float:
        run()
        return next(spent)

    monkeypatch.setattr(clock, "_seconds", timed)
    contenders = {name: lambda name=name: ran.append(name) for name in ("one", "other")}
    assert clock.in_turns(contenders, 2) == {"one": [1.0, 3.0], "other": [2.0, 4.0]}
    assert ran == ["one", "other"] * 3


def test_the_peak_is_that_of_what_is_made():
    weights = torch.ones(1000)

    def run() -> None:
        double = 2 * weights
        del double
        torch.ones(100) + torch.ones(100)

    assert clock.peak(run) == 4000


def test_circumstances_say_where_and_with_what():
    found = clock.circumstances()
    assert found["cpu"] and found["cores"] >= 1 and found["memory_gib"] > 0
    assert found["versions"]["torch"] and clock._version("no-such-package") is None
