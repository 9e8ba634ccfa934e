from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.budget import Budget, format_cost, parse_budget, parse_budgets, parse_frontier
from compressor.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("madds=50%", Budget("madds", 0.5, relative=True)),
        ("madds=150M", Budget("madds", 150e6, relative=False)),
        (" madds = 1.5 G ", Budget("madds", 1.5e9, relative=False)),
        ("madds=2e6", Budget("madds", 2e6, relative=False)),
        ("params=2M", Budget("params", 2e6, relative=False)),
        ("params=900K", Budget("params", 9e5, relative=False)),
        ("latency=4ms", Budget("latency", 4.0, relative=False)),
        ("latency=.5s", Budget("latency", 500.0, relative=False)),
        ("latency=800us", Budget("latency", 0.8, relative=False)),
        ("latency=62.5%", Budget("latency", 0.625, relative=True)),
    ],
)
def test_reads_amounts_with_units(text: str, budget: Budget) -> None:
    read = parse_budget(text)
    assert (read.unit, read.relative) == (budget.unit, budget.relative)
    assert read.amount == pytest.approx(budget.amount, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "UNIT=AMOUNT"),
        ("50%", "UNIT=AMOUNT"),
        ("madds", "UNIT=AMOUNT"),
        ("madds=", "UNIT=AMOUNT"),
        ("madds=-5M", "UNIT=AMOUNT"),
        ("madds=nan", "UNIT=AMOUNT"),
        ("madds=1.2.3M", "UNIT=AMOUNT"),
        ("flops=50%", "'flops'"),
        ("madds=0%", "50% asks for half"),
        ("madds=100%", "50% asks for half"),
        ("madds=150%", "50% asks for half"),
        ("madds=5ms", "'M'"),
        ("latency=4", "'ms'"),
        ("latency=4M", "'ms'"),
        ("params=0", "above 0"),
        ("madds=1e999", "finite"),
        ("latency=1e306s", "finite"),
        ("madds=1e-323%", "above 0"),
    ],
)
def test_refuses_what_cannot_be_meant(text: str, word: str) -> None:
    with pytest.raises(BudgetError) as caught:
        parse_budget(text)
    assert word in str(caught.value)


def test_reads_several_limits() -> None:
    units = [b.unit for b in parse_budgets("madds=50%, latency=4ms")]
    assert units == ["madds", "latency"]
    assert parse_budgets(["madds=50%", "latency=4ms"]) == parse_budgets("madds=50%,latency=4ms")


@pytest.mark.parametrize("texts", ["", " , ", [], ["madds=50%", "madds=20M"], "madds=1M,madds=2M"])
def test_refuses_no_limit_and_two_of_a_unit(texts: str | list[str]) -> None:
    with pytest.raises(BudgetError):
        parse_budgets(texts)


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(BudgetError):
        assert parse_budgets(text)


@given(
    st.sampled_from(["madds", "params", "latency"]),
    st.booleans(),
    st.floats(min_value=0.0001, max_value=0.9999),
)
def test_text_of_a_budget_reads_back(unit: str, relative: bool, share: float) -> None:
    budget = Budget(unit, share if relative else share * 1e8, relative)
    again = parse_budget(str(budget))
    assert (again.unit, again.relative) == (unit, relative)
    assert again.amount == pytest.approx(budget.amount, rel=0.01)


def test_relative_limits_are_of_the_original() -> None:
    assert parse_budget("madds=25%").limit(200.0) == 50.0
    assert parse_budget("madds=2K").limit(200.0) == 2000.0


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        ("madds", 20_560_000, "20.56M"),
        ("madds", 1.25e9, "1.25G"),
        ("params", 999, "999"),
        ("params", 1000, "1K"),
        ("latency", 3.4159, "3.42 ms"),
        ("latency", 1234.5, "1234 ms"),
        ("madds", 0, "0"),
    ],
)
def test_costs_for_people(unit: str, value: float, text: str) -> None:
    assert format_cost(unit, value) == text


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("madds=40%..50%", Budget("madds", 0.5, relative=True, low=0.4)),
        (" madds = 1M .. 1.5 G ", Budget("madds", 1.5e9, relative=False, low=1e6)),
        ("latency=800us..4ms", Budget("latency", 4.0, relative=False, low=0.8)),
    ],
)
def test_reads_ranges(text: str, budget: Budget) -> None:
    read = parse_budget(text)
    assert (read.unit, read.relative) == (budget.unit, budget.relative)
    assert (read.low, read.amount) == pytest.approx((budget.low, budget.amount), rel=1e-12)
    assert parse_budget(str(read)) == read


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("madds=50%..40%", "LEAST..MOST"),
        ("madds=50%..50%", "LEAST..MOST"),
        ("madds=40%..2M", "both ends"),
        ("madds=40..50%", "both ends"),
        ("madds=..50%", "UNIT=LEAST..MOST"),
        ("madds=40%..", "UNIT=LEAST..MOST"),
        ("madds=10%..20%..30%", "UNIT=LEAST..MOST"),
        ("madds=50%..100%", "below 100 %"),
        ("latency=3..4ms", "'ms'"),
    ],
)
def test_refuses_ranges_that_cannot_be_meant(text: str, word: str) -> None:
    with pytest.raises(BudgetError) as caught:
        parse_budget(text)
    assert word in str(caught.value)
    assert text in str(caught.value)


def test_relative_ranges_are_of_the_original() -> None:
    budget = parse_budget("madds=25%..50%")
    assert (budget.least(200.0), budget.limit(200.0)) == (50.0, 100.0)
    assert parse_budget("madds=2K..3K").least(200.0) == 2000.0
    assert parse_budget("madds=25%").least(200.0) is None


def test_reads_a_frontier() -> None:
    texts = ["madds=90%,80%, 20M", "madds=90%, madds=80%,20M", ["madds=90%", "80%,20M"]]
    for text in texts:
        names = [str(b) for b in parse_frontier(text, parse_budgets("latency=4ms"))]
        assert names == ["madds=90%", "madds=80%", "madds=20M"]
    folders = [b.folder for b in parse_frontier("latency=4ms,62.5%")]
    assert folders == ["latency-4-ms", "latency-62.5pct"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "two different amounts"),
        ("90%,80%", "UNIT=AMOUNT"),
        ("madds=90%", "two different amounts"),
        ("madds=90%,90%", "two different amounts"),
        ("madds=90%,params=80%", "of one unit"),
        ("madds=90%,60%..70%", "upper end alone"),
        ("params=90%,80%", "drop the budget"),
        ("madds=90%,120%", "below 100 %"),
    ],
)
def test_refuses_a_frontier_that_cannot_be_meant(text: str, word: str) -> None:
    with pytest.raises(BudgetError) as caught:
        parse_frontier(text, parse_budgets("params=50%"))
    assert word in str(caught.value)
