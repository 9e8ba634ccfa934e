"""Budgets in numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compressor.budget import parse_budgets
from compressor.errors import BudgetError
from compressor.limits import resolve_budgets
from compressor.space import Architecture


class Cost:
    def __init__(self, unit: str, whole: float) -> None:
        self.unit, self.monotone, self.whole = unit, unit != "latency", whole

    def __call__(self, architecture: Architecture) -> float:
        return self.whole * sum(architecture) / 4


COSTS = {u: Cost(u, w) for u, w in (("madds", 1000.0), ("params", 400.0), ("latency", 8.0))}


def limits(text: str) -> list[float]:
    return [b.high for b in resolve_budgets(parse_budgets(text), COSTS, (2, 2))]


def test_relative_and_absolute() -> None:
    assert limits("madds=50%") == [500]
    assert limits("madds=600, params=25%") == [600, 100]
    assert limits("latency=4ms") == [4]


def test_measured_costs_are_aimed_below_the_limit() -> None:
    madds, latency = resolve_budgets(parse_budgets("madds=50%, latency=50%"), COSTS, (2, 2))
    assert madds.limit().high == 500
    assert latency.high == 4
    assert 3.7 < latency.limit().high < 4


def test_a_budget_that_is_already_met() -> None:
    with pytest.raises(BudgetError, match=r"already meets.*madds 1K \(budget 2K\).*ask for less"):
        limits("madds=2K")
    # one of two that asks for something is enough
    assert limits("madds=2K, params=50%") == [2000, 200]


def test_both_ends_of_a_range() -> None:
    madds, latency = resolve_budgets(
        parse_budgets("madds=40%..50%, latency=2ms..2.08ms"), COSTS, (2, 2)
    )
    assert (madds.low, madds.high) == pytest.approx((400, 500))
    assert (madds.limit().low, madds.limit().high) == (madds.low, madds.high)
    # aimed off both ends of what is measured, and never past the middle
    limit = latency.limit()
    assert limit.low is not None
    assert (latency.low, latency.high) == (2, 2.08)
    assert 2 < limit.low < limit.high < 2.08
    assert latency.holds(2.08)
    assert not latency.holds(1.99)


def test_an_original_below_a_range_does_not_meet_it() -> None:
    (madds,) = resolve_budgets(parse_budgets("madds=2K..3K"), COSTS, (2, 2))
    assert not madds.holds(madds.original)


def test_a_measured_cost_stays_off_the_end_by_what_days_may_differ():
    (alone,) = resolve_budgets(parse_budgets("latency=4ms"), COSTS, (2, 2))
    assert alone.guarded == pytest.approx(3.92)
    assert replace(alone, low=3.9).guarded == pytest.approx(3.975)
