"""Budgets as text, when they are reached, and at which shares runs are evaluated."""

import pytest

from benchmarks.api import UserError
from benchmarks.compute.budget import FRACTIONS, Budget, fractions


@pytest.mark.parametrize("text", ["flops", "flops=", "flops=-1", "flops=inf", "watts=3", "=3"])
def test_what_is_no_budget_is_refused(text: str):
    with pytest.raises(UserError, match="KIND=AMOUNT"):
        Budget.parse(text)


def test_a_budget_is_reached_when_nothing_more_fits():
    """An update that asks the reward nothing still fits a budget of queries that is used up."""
    assert Budget("steps", 4).reached(1.0, 1.0) and not Budget("queries", 4).reached(1.0, 1.0)
    assert Budget("queries", 4).reached(1.0, 1.01) and not Budget("flops", 4).reached(1.0, 0.99)


def test_more_budget_is_evaluated_at_the_same_costs():
    one, eight = Budget.parse("flops=6e12"), Budget.parse("flops=6e12").times(8)
    shared = [share * one.amount for share in FRACTIONS]
    assert [share * eight.amount for share in fractions(8)][: len(shared)] == shared
    assert fractions(8)[-4:] == (1 / 8, 1 / 4, 1 / 2, 1.0)
    assert fractions(1) == FRACTIONS and fractions(3)[-3:] == (1 / 3, 2 / 3, 1.0)
    with pytest.raises(UserError, match="at least 1"):
        one.times(0.5)


@pytest.mark.parametrize("text", ["flops=6e12", "queries=25000", "seconds=0.5", "steps=12345678"])
def test_a_budget_is_written_as_it_is_read(text: str):
    assert Budget.parse(str(Budget.parse(text))) == Budget.parse(text)
    assert Budget.parse(str(Budget.parse("flops=6e12").times(8))).amount == 4.8e13
