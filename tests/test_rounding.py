"""Costs in whole buckets: what is rounded down is no bargain."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.search.kernels import Effects, Floats
from compressor.search.recombine import best_of_each_cost
from compressor.search.rounding import rounded


def _problem(layers: int, options: int, room: float, seed: int) -> tuple[Floats, Floats]:
    """Concave effects, and costs of which about half fits into the room."""
    rng = np.random.default_rng(seed)
    costs = np.sort(rng.random((layers, options)), axis=1) * np.exp(rng.normal(size=(layers, 1)))
    costs -= costs[:, :1]
    main = np.exp(rng.normal(size=(layers, 1))) * np.log1p(costs / costs[:, -1:])
    return main, 2 * room * costs / costs[:, -1].sum()


@given(st.integers(1, 30), st.integers(0, 10**6))
def test_whole_costs_change_nothing(room: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    main, costs = rng.normal(size=(4, 3)), rng.integers(0, 9, (4, 3)).astype(float)
    form = rounded(main, costs, room)
    np.testing.assert_array_equal(form.main, main)
    np.testing.assert_array_equal(form.steps, costs)
    assert form.shift == form.spread == 0


@pytest.mark.parametrize("better", ["dearer", "cheaper"])
@pytest.mark.parametrize("buckets", [60, 240])
def test_the_best_of_many_layers_are_near_the_limit_and_nearly_the_best(
    buckets: int, better: str
) -> None:
    main, costs = _problem(120, 8, buckets, seed=0)
    main = main if better == "dearer" else -main
    form = rounded(main, costs, buckets)
    window = (int(buckets - form.shift - form.spread), int(buckets - form.shift + form.spread))
    (found,) = best_of_each_cost([Effects(form.main)], form.steps, window)
    layers = np.arange(120)
    true = costs[layers, found].sum(axis=1) / buckets
    inside = (true <= 1) & (true >= 0.95)
    assert inside.any()
    # no network of such a cost is above this, at any price of a bucket
    prices = np.linspace(-3, 3, 4001) * np.ptp(main) / np.median(costs.max(axis=1))
    limits = np.where(prices > 0, 1.0, 0.95) * buckets
    bounds = [
        (main - price * costs).max(axis=1).sum() + price * limit
        for price, limit in zip(prices, limits, strict=True)
    ]
    reached = Effects(main).of(found[inside]).max()
    assert min(bounds) - reached < 0.02 * np.ptp(main, axis=1).sum()


def test_options_that_do_not_exist_stay_out() -> None:
    main = np.array([[1.0, 2.0, -np.inf], [0.0, 1.0, 2.0]])
    costs = np.array([[0.0, 1.3, 0.0], [0.0, 0.4, 0.9]])
    form = rounded(main, costs, 1.0)
    assert form.main[0, 2] == -np.inf
    assert np.isfinite(form.main).sum() == 5
    assert np.isfinite([form.shift, form.spread]).all()
