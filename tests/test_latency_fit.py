from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import MeasureError
from compressor.latency.fit import corrected, shrunk


def networks(seed: int, count: int, kinds: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 1, (count, 1)) * rng.uniform(0.5, 1.5, (count, kinds))


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 99),
    st.lists(st.floats(0.5, 1.5), min_size=3, max_size=3),
    st.floats(0, 0.5),
)
def test_networks_that_are_sums_are_predicted(seed, scales, constant):
    sums = networks(seed, 60)
    times = sums @ np.array(scales) + constant
    correction = corrected(sums[:20], times[:20])
    np.testing.assert_allclose(correction.of(sums), times, rtol=0.1)
    assert correction.error < 0.05
    assert min(*correction.scales, correction.constant) >= 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 99), st.floats(0.01, 100))
def test_another_unit_of_time_changes_nothing_else(seed, unit):
    sums = networks(seed, 12)
    times = sums.sum(axis=1) * np.random.default_rng(seed).uniform(0.9, 1.1, 12)
    one, other = corrected(sums, times), corrected(sums, times * unit)
    np.testing.assert_allclose(np.array(other.of(sums)) / unit, one.of(sums), rtol=1e-5)
    assert other.spread == pytest.approx(one.spread, rel=1e-5)


def test_the_error_is_that_of_networks_left_out():
    sums, rng = networks(0, 200), np.random.default_rng(1)
    times = (sums.sum(axis=1) + 0.1) * rng.normal(1, 0.05, 200)
    correction = corrected(sums[:14], times[:14])
    missed = np.abs(correction.of(sums[14:]) / times[14:] - 1)
    assert correction.error == pytest.approx(missed.mean(), rel=0.6)
    assert correction.spread > correction.error
    assert correction.networks == 14


def test_kinds_that_a_few_networks_cannot_tell_apart_share_their_scale():
    sums = networks(2, 12, kinds=1) @ np.ones((1, 2))  # both kinds always equal
    correction = corrected(sums, 3 * sums.sum(axis=1))
    assert correction.scales == pytest.approx((3, 3), rel=1e-3)


@pytest.mark.parametrize("times", [[1.0, 1.0, 1.0], [1, 1, 1, 0.0], [1, 1, 1, np.nan]])
def test_too_few_networks_and_times_that_are_none_are_refused(times):
    with pytest.raises(MeasureError, match="at least 4 networks"):
        corrected(networks(0, len(times)), np.array(times))


def test_a_strong_pull_leaves_coefficients_where_they_were_drawn_to():
    columns, target = np.eye(2), np.array([1.0, 1.0])
    found = shrunk(columns, target, np.array([5.0, 5.0]), np.array([1e9, 1e-9]))
    assert found == pytest.approx([5, 1], rel=1e-6)
