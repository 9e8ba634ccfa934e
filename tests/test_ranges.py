"""Ranges, and costs of any shape, held against brute force in small spaces."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.cost import Limit
from compressor.errors import BudgetError, InfeasibleError
from compressor.search.baselines import brute_force, random_search, regularised_evolution
from compressor.search.layer_nas import SearchSettings, layer_nas
from compressor.search.outcome import SearchResult
from compressor.search.reach import Reach
from compressor.search.settings import Strategy
from compressor.space import Architecture

STRATEGIES: tuple[Strategy, ...] = ("guided", "published")
SEARCHES = [layer_nas, random_search, regularised_evolution, brute_force]


@dataclass
class Table:
    """A cost of any shape, slow or exact."""

    values: dict[Architecture, int]
    unit: str = "latency"
    monotone: bool = False

    def __call__(self, architecture: Architecture) -> float:
        return float(self.values[architecture])


class ExactTable(Table):
    """The same, for many networks at once."""

    def many(self, architectures: np.ndarray) -> np.ndarray:
        return np.array([self(tuple(row)) for row in architectures.tolist()])


@dataclass(frozen=True)
class Problem:
    """A small space with limits of several kinds and a score of any shape."""

    sizes: list[int]
    limits: list[Limit]
    scores: dict[Architecture, int]

    @property
    def feasible(self) -> set[Architecture]:
        return {a for a in self.scores if all(x.holds(x.cost(a)) for x in self.limits)}

    def run(self, search: Callable[..., SearchResult], **how: Any) -> SearchResult:
        return search(sizes=self.sizes, limits=self.limits, score=self.scores.__getitem__, **how)


@st.composite
def _limits(draw: st.DrawFn, cost: Any, most: int) -> Limit:
    high = draw(st.integers(0, most))
    low = draw(st.one_of(st.none(), st.integers(0, high)))
    return Limit(cost, high, low)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    networks = list(itertools.product(*map(range, sizes)))
    limits = []
    kinds = draw(st.lists(st.sampled_from(["madds", "params", "slow", "exact"]), min_size=1,
                          max_size=3, unique=True))  # fmt: skip
    if {"slow", "exact"} <= set(kinds):
        kinds.remove("exact")  # one latency is enough
    for kind in kinds:
        if kind in ("slow", "exact"):
            values = {a: draw(st.integers(1, 9)) for a in networks}
            cost = Table(values) if kind == "slow" else ExactTable(values)
            limits.append(draw(_limits(cost, 9)))
        else:
            rows = [sorted(draw(st.integers(0, 9)) for _ in range(n)) for n in sizes]
            sums = {a: sum(r[o] for r, o in zip(rows, a, strict=True)) for a in networks}
            cost = Table(sums, kind, monotone=True)
            limits.append(draw(_limits(cost, 9 * len(sizes))))
    scores = {a: draw(st.integers(0, 9)) for a in networks}
    return Problem(sizes, limits, scores)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("search", SEARCHES)
@settings(max_examples=80, deadline=None)
@given(problem=problems(), count=st.integers(1, 12), seed=st.integers(0, 3))
def test_a_network_that_keeps_all_limits_is_found_wherever_there_is_one(
    search: Callable[..., SearchResult],
    strategy: Strategy,
    problem: Problem,
    count: int,
    seed: int,
) -> None:
    how = {"evaluations": count, "seed": seed, "settings": SearchSettings(strategy=strategy)}
    if not problem.feasible:
        with pytest.raises(InfeasibleError):
            problem.run(search, **how)
        return
    assert problem.run(search, **how).best.architecture in problem.feasible


@pytest.mark.parametrize("tightness", [0.0, 0.97])
@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=150, deadline=None)
@given(problem=problems(), seed=st.integers(0, 3))
def test_enough_evaluations_find_the_best_whatever_the_costs(
    strategy: Strategy, tightness: float, problem: Problem, seed: int
) -> None:
    if not problem.feasible:
        return
    count = len(problem.scores)
    # what the published strategy drops from its buckets, it never sees again: keep everything
    how = SearchSettings(strategy=strategy, tightness=tightness, kept=count)
    ours = problem.run(layer_nas, evaluations=count, seed=seed, settings=how).best
    best = problem.run(brute_force, settings=how).best
    assert ours.architecture in problem.feasible
    assert ours.score == best.score


@settings(max_examples=60, deadline=None)
@given(problem=problems(), count=st.integers(1, 80))
def test_all_networks_of_the_guided_strategy_lie_within_the_ranges(
    problem: Problem, count: int
) -> None:
    if problem.feasible:
        scored = problem.run(layer_nas, evaluations=count).scored
        assert {c.architecture for c in scored} <= problem.feasible


@settings(max_examples=100, deadline=None)
@given(problem=problems())
def test_prefixes_of_feasible_networks_stay_reachable(problem: Problem) -> None:
    if not problem.feasible:
        return
    reach = Reach(problem.sizes, problem.limits, tightness=0.0)
    for network in problem.feasible:
        assert all(reach.reachable(network[:n]) for n in range(len(network) + 1))


# ---- a space of realistic size

WIDTHS = [[w * s // 8 for s in range(1, 9)] for w in (16, 16, 32, 32, 64, 64, 128, 128, 64, 32)]


@dataclass
class Chain:
    """Multiply-adds of a chain of convolutions."""

    unit: str = "madds"
    monotone: bool = True

    def __call__(self, architecture: Architecture) -> float:
        chosen = [3, *(row[o] for row, o in zip(WIDTHS, architecture, strict=True)), 10]
        return sum(a * b for a, b in itertools.pairwise(chosen))


@dataclass
class Weights(Chain):
    """Another cost, of another slope."""

    unit: str = "params"

    def __call__(self, architecture: Architecture) -> float:
        return sum((i + 1) * row[o] for i, (row, o) in enumerate(zip(WIDTHS, architecture)))  # noqa: B905


def _whole(cost: Chain) -> float:
    return cost((7,) * len(WIDTHS))


def _score(architecture: Architecture) -> float:
    """Best in the middle: the most expensive network is not the best."""
    return -sum(abs(o - 3.5) * (1 + i % 3) for i, o in enumerate(architecture))


@pytest.mark.parametrize("search", [layer_nas, random_search, regularised_evolution])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ends", [(0.30, 0.80), (0.45, 0.5), (0.4995, 0.5)])
def test_the_answer_lies_within_a_range(
    search: Callable[..., SearchResult], strategy: Strategy, ends: tuple[float, float]
) -> None:
    cost = Chain()
    low, high = (end * _whole(cost) for end in ends)
    result = search(
        sizes=[8] * len(WIDTHS),
        limits=[Limit(cost, high, low)],
        score=_score,
        evaluations=40,
        settings=SearchSettings(strategy=strategy),
    )
    assert low <= result.best.costs["madds"] <= high


def test_a_wide_range_uses_its_freedom() -> None:
    cost = Chain()
    high, low = 0.8 * _whole(cost), 0.1 * _whole(cost)
    arguments: dict[str, Any] = {"sizes": [8] * len(WIDTHS), "score": _score, "evaluations": 60}
    ranged = layer_nas(limits=[Limit(cost, high, low)], **arguments)
    banded = layer_nas(limits=[Limit(cost, high)], **arguments)
    assert ranged.best.score > banded.best.score + 5
    assert all(low <= c.costs["madds"] <= high for c in ranged.scored)


def test_two_ranges_hold_together() -> None:
    limits = [
        Limit(cost, high * _whole(cost), low * _whole(cost))
        for cost, low, high in ((Chain(), 0.40, 0.42), (Weights(), 0.60, 0.64))
    ]
    result = layer_nas(sizes=[8] * len(WIDTHS), limits=limits, score=_score, evaluations=40)
    assert len(result.scored) == 40
    for candidate in result.scored:
        assert all(x.holds(candidate.costs[x.cost.unit]) for x in limits)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_measured_range_and_a_table(strategy: Strategy) -> None:
    table = Chain()

    @dataclass
    class Latency(Chain):
        unit: str = "latency"
        monotone: bool = False

        def __call__(self, architecture: Architecture) -> float:
            noise = random.Random(str(architecture)).uniform(0.9, 1.1)  # noqa: S311
            return noise * (table(architecture) / _whole(table)) ** 0.7

    limits = [Limit(Latency(), 0.6, 0.55), Limit(table, 0.6 * _whole(table))]
    result = layer_nas(
        sizes=[8] * len(WIDTHS),
        limits=limits,
        score=_score,
        evaluations=40,
        settings=SearchSettings(strategy=strategy),
    )
    assert all(x.holds(result.best.costs[x.cost.unit]) for x in limits)


def test_networks_are_drawn_where_even_the_smallest_is_too_slow() -> None:
    @dataclass
    class Slow(Chain):
        unit: str = "latency"
        monotone: bool = False

        def __call__(self, architecture: Architecture) -> float:
            return 1.0 + 9.0 * (architecture[0] < 2)

    how: dict[str, Any] = {"sizes": [8] * len(WIDTHS), "limits": [Limit(Slow(), 2.0)]}
    for search in (layer_nas, random_search, regularised_evolution):
        result = search(score=_score, evaluations=20, **how)
        assert len(result.scored) > 10
        assert result.best.architecture[0] >= 2


# ---- what cannot be met


@pytest.mark.parametrize("search", SEARCHES)
def test_an_empty_range_names_what_comes_nearest(search: Callable[..., SearchResult]) -> None:
    values = {(a, b): 10 * a + 3 * b for a in range(3) for b in range(3)}
    cost = Table(values, "madds", monotone=True)
    with pytest.raises(InfeasibleError) as caught:
        search(sizes=[3, 3], limits=[Limit(cost, 9, 7)], score=len)
    words = ("madds", "within 7 and 9", "6 and 10", "2 search layers", "widen the range")
    assert all(word in str(caught.value) for word in words)


def test_a_range_beyond_the_original_names_the_original() -> None:
    cost = Table({(0,): 5, (1,): 8}, "madds", monotone=True)
    with pytest.raises(InfeasibleError, match="within 9 and 12 and the nearest found has 8,"):
        layer_nas(sizes=[2], limits=[Limit(cost, 12, 9)], score=len)


def test_a_range_that_another_limit_forbids() -> None:
    networks = list(itertools.product(range(4), range(4)))
    madds = Table({a: sum(a) for a in networks}, "madds", monotone=True)
    params = replace(madds, unit="params")
    with pytest.raises(InfeasibleError, match=r"keeps the other limits, but madds .* has 2,"):
        layer_nas(sizes=[4, 4], limits=[Limit(madds, 6, 4), Limit(params, 2)], score=len)


def test_a_measured_range_that_nothing_meets() -> None:
    latency = Table({(o,): o % 2 * 10 for o in range(8)})
    with pytest.raises(InfeasibleError, match=r"within 4 ms and 6 ms and .* 0 ms and 10 ms"):
        layer_nas(sizes=[8], limits=[Limit(latency, 6, 4)], score=len)


def test_a_range_must_rise() -> None:
    with pytest.raises(BudgetError, match="from less to more, but latency got 5 to 4"):
        Limit(Table({}), 4, 5)
