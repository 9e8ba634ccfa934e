"""Statistics of times: no clock, no session."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compressor.device.timing import Latency, interval, latencies, pooled

LATENCY = Latency(1.0, 0.9, 1.2, 0.98, 1.02, 60, 1.0, 1.0, 1.0)


# What `Latency` promises of its intervals, with the error of 600 trials taken off.
@pytest.mark.parametrize(
    ("count", "least"), [(6, 0.89), (7, 0.83), (10, 0.90), (20, 0.91), (50, 0.92), (300, 0.92)]
)
def test_an_interval_holds_the_median_about_as_often_as_it_says(count: int, least: float) -> None:
    rng = np.random.default_rng(count)
    hits = 0
    for _ in range(600):
        low, high = interval(rng.lognormal(0, 0.5, count))
        hits += low <= 1 <= high
    assert least <= hits / 600 <= 0.98


def test_an_interval_of_many_rounds_is_narrow() -> None:
    low, high = interval(np.random.default_rng(0).lognormal(0, 0.5, 50_000))
    assert low <= 1 <= high
    assert high - low < 0.03


def test_an_interval_is_the_same_every_time() -> None:
    values = np.random.default_rng(0).lognormal(0, 0.5, 30)
    assert interval(values) == interval(values)


def turns(seconds: np.ndarray) -> np.ndarray:
    """One run a round."""
    return seconds[:, None]


def test_figures_are_milliseconds_of_the_rounds_medians() -> None:
    found = latencies({"a": [[0.001, 0.002, 0.009]] * 3 + [[0.004] * 3] * 3})["a"]
    assert found.median_ms == pytest.approx(3)
    assert (found.low_ms, found.high_ms) == (pytest.approx(2), pytest.approx(4))
    assert found.runs == 18
    assert found.memory_bytes is None


def test_what_slows_a_round_down_is_not_in_the_ratio() -> None:
    rng = np.random.default_rng(0)
    slow = rng.lognormal(0, 0.5, 12)  # of the whole machine, round by round
    found = latencies({"a": turns(1e-3 * slow), "b": turns(2e-3 * slow)})
    assert found["a"].noisy
    assert not found["b"].ratio_noisy
    assert (found["b"].ratio, found["b"].ratio_low, found["b"].ratio_high) == pytest.approx(
        (2,) * 3
    )
    assert found["b"].verdict == "slower"
    assert found["a"].ratio == found["a"].ratio_low == found["a"].ratio_high == 1


def test_slow_spells_that_outlast_a_round_widen_the_interval() -> None:
    """Two thousand rounds in two hundred spells tell two hundred values."""
    rng = np.random.default_rng(0)
    alone = rng.lognormal(0, 0.2, 2000)
    spells = np.repeat(rng.lognormal(0, 0.2, 200), 10)
    low, high = interval(alone)
    wide_low, wide_high = interval(spells)
    assert wide_high - wide_low > 1.6 * (high - low)


def test_a_machine_is_noisy_where_the_interval_is_wider_than_five_per_cent() -> None:
    assert not LATENCY.noisy
    assert not replace(LATENCY, low_ms=0.951, high_ms=1.049).noisy
    assert replace(LATENCY, low_ms=0.94, high_ms=1.05).noisy
    assert replace(LATENCY, low_ms=0.1, high_ms=np.inf).noisy
    assert replace(LATENCY, ratio_low=0.9, ratio_high=1.1).ratio_noisy


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.8, 0.99, "faster"), (1.01, 1.2, "slower"), (0.99, 1.01, "cannot tell"),
     (0.5, 1.5, "cannot tell"), (1.0, 1.2, "cannot tell"), (0.9, 1.0, "cannot tell")],
)  # fmt: skip
def test_a_verdict_needs_the_whole_interval(low: float, high: float, verdict: str) -> None:
    assert replace(LATENCY, ratio_low=low, ratio_high=high).verdict == verdict


def test_a_clock_too_coarse_to_see_a_call() -> None:
    blind = np.zeros(8)
    found = latencies({"a": turns(blind), "b": turns(blind), "c": turns(blind + 1e-3)})
    assert found["b"].ratio == 1
    assert found["c"].ratio == np.inf
    assert found["a"].noisy is False


def test_windows_are_pooled_to_the_widest_ends() -> None:
    def window(ms: float, high: float) -> Latency:
        return Latency(ms, ms, ms, ms - 1, high, 30, ms / 10, ms / 10 - 0.1, high / 10)

    found = pooled([window(4, 5), window(5, 7), window(9, 9.5)])
    assert (found.median_ms, found.low_ms, found.high_ms, found.runs) == (5, 3, 9.5, 90)
    assert (found.ratio, found.ratio_low, found.ratio_high) == pytest.approx((0.5, 0.3, 0.95))
    assert found.memory_bytes is None
    assert pooled([window(4, 5)]) == window(4, 5)
