from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.search.kernels import Effects
from compressor.search.recombine import best_of_each_cost


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], Effects, np.ndarray, tuple[int, int]]:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    layers, most = len(sizes), max(sizes)
    real = np.arange(most) < np.array(sizes)[:, None]
    main = np.where(real, rng.integers(-9, 9, (layers, most)), -np.inf)
    pairs = rng.integers(-5, 5, (layers - 1, most, most)).astype(float)
    steps = rng.integers(0, 6, (layers, most))
    low = draw(st.integers(-2, 20))
    return sizes, Effects(main, pairs), steps, (low, low + draw(st.integers(0, 8)))


@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_finds_the_best_network_of_every_cost(
    case: tuple[list[int], Effects, np.ndarray, tuple[int, int]],
) -> None:
    sizes, effects, steps, window = case
    layers = np.arange(len(sizes))
    best: dict[int, float] = {}
    for network in itertools.product(*map(range, sizes)):
        cost = int(steps[layers, network].sum())
        if window[0] <= cost <= window[1]:
            value = float(effects.of(np.array([network]))[0])
            best[cost] = max(best.get(cost, -np.inf), value)
    found: dict[int, float] = {}
    for row in best_of_each_cost([effects], steps, window)[0]:
        assert all(0 <= option < size for option, size in zip(row, sizes, strict=True))
        cost = int(steps[layers, row].sum())
        found[cost] = max(found.get(cost, -np.inf), float(effects.of(row[None])[0]))
    assert found == best


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_views_are_independent_and_no_pairs_are_pairs_of_zero(
    case: tuple[list[int], Effects, np.ndarray, tuple[int, int]],
) -> None:
    _, effects, steps, window = case
    alone = Effects(effects.main)
    nothing = Effects(effects.main, np.zeros_like(effects.pairs))
    # beside a view whose layers interact, all are recombined as if theirs did
    together = best_of_each_cost([nothing, effects, alone], steps, window)
    layers = np.arange(len(steps))
    for found, view in zip(together, (alone, effects, alone), strict=True):
        (single,) = best_of_each_cost([view], steps, window)
        costs = [steps[layers, networks].sum(axis=1).tolist() for networks in (found, single)]
        assert costs[0] == costs[1]
        np.testing.assert_array_equal(view.of(found), view.of(single))
