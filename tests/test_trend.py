"""The trend: how far measurements of single options explain the scores of networks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from compressor.errors import SearchError
from compressor.search.kernels import Floats, Networks
from compressor.search.trend import Trend

SIZES = (3, 2, 4)
HINTS = ((4.0, 1.0, 0.0), (2.0, 0.0), (8.0, 3.0, 2.0, 0.0))


def everything() -> Networks:
    return np.array(list(itertools.product(*map(range, SIZES))), dtype=np.int64)


def sums(networks: Networks) -> Floats:
    return np.array([sum(r[o] for r, o in zip(HINTS, a, strict=True)) for a in networks.tolist()])


def test_before_any_score_cheaper_is_better() -> None:
    trend = Trend(SIZES, HINTS)
    np.testing.assert_allclose(trend.of(everything()), -sums(everything()))


def test_the_slope_is_that_of_the_scores_and_constants_do_not_matter() -> None:
    networks = everything()[::3]
    trend = Trend(SIZES, HINTS)
    trend.fit(networks, 7 - 0.25 * sums(networks))
    np.testing.assert_allclose(trend.of(everything()), -0.25 * sums(everything()))


def test_measurements_that_point_the_wrong_way_count_for_nothing() -> None:
    trend = Trend(SIZES, HINTS)
    trend.fit(everything(), sums(everything()))
    assert not trend.of(everything()).any()


@pytest.mark.parametrize("count", [1, 2])
def test_scores_of_equal_sums_say_nothing_of_the_slope(count: int) -> None:
    trend = Trend(SIZES, HINTS)
    network = everything()[:1]
    trend.fit(np.repeat(network, count, axis=0), np.arange(float(count)))
    np.testing.assert_allclose(trend.of(everything()), -sums(everything()))


def test_effects_are_the_same_numbers_by_option() -> None:
    trend = Trend(SIZES, HINTS)
    trend.fit(everything(), -3 * sums(everything()))
    np.testing.assert_allclose(trend.effects().of(everything()), trend.of(everything()))


def test_another_view_weighs_layers_but_keeps_the_order_within_each() -> None:
    trend = Trend(SIZES, HINTS)
    views = [trend.view(np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert np.array_equal(views[0].main, views[1].main)
    assert not np.array_equal(views[0].main, views[2].main)
    for plain, seen in zip(trend.effects().main, views[2].main, strict=True):
        ratios = seen[plain != 0] / plain[plain != 0]
        np.testing.assert_allclose(ratios, ratios[0])
        assert ratios[0] > 0


@pytest.mark.parametrize(
    "hints",
    [
        (),
        HINTS[:2],
        (*HINTS, (1.0,)),
        (HINTS[0], (1.0,), HINTS[2]),
        (HINTS[0], (1.0, 2.0, 3.0), HINTS[2]),
    ],
)
def test_hints_of_another_form(hints: Any) -> None:
    with pytest.raises(SearchError, match=r"one number for each option of each layer, \[3, 2, 4\]"):
        Trend(SIZES, hints)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_hints_that_are_no_numbers(value: float) -> None:
    with pytest.raises(SearchError, match="finite"):
        Trend(SIZES, (HINTS[0], (value, 0.0), HINTS[2]))
