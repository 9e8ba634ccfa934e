"""A probe's layers dealt to workers, against all ways to deal them."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.workers.sharing import shares

COSTS = st.lists(st.integers(1, 20).map(float), min_size=1, max_size=8)


def longest(parts: list[range], costs: list[float], start: float) -> float:
    return max(sum(costs[i] for i in part) + (start if part[0] else 0.0) for part in parts)


def every_way(layers: int, workers: int) -> list[list[range]]:
    found = []
    for count in range(min(layers, workers)):
        for cuts in combinations(range(1, layers), count):
            found.append([range(a, b) for a, b in zip((0, *cuts), (*cuts, layers), strict=True)])
    return found


@given(COSTS, st.integers(0, 20), st.integers(1, 5))
def test_the_longest_share_is_as_short_as_can_be(
    costs: list[float], start: int, workers: int
) -> None:
    parts = shares(costs, start, workers)
    assert [i for part in parts for i in part] == list(range(len(costs)))
    assert all(parts)
    assert len(parts) <= workers
    best = min(longest(way, costs, start) for way in every_way(len(costs), workers))
    assert longest(parts, costs, start) == pytest.approx(best)


def test_who_has_to_come_far_is_not_asked() -> None:
    assert shares([1.0, 1.0, 1.0], 10.0, 2) == [range(3)]


def test_nothing_to_share() -> None:
    assert shares([], 1.0, 2) == []
