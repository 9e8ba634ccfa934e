"""Refitted weights and their moments against least squares by another way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.refit.least_squares import RIDGE, restricted, ridged
from compressor.refit.moments import Moments


def problem(seed: int, inputs: int, outputs: int, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Correlated inputs `[G, n, D]` with a mean, and a weight `[G, O / G, D]`."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(groups, inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(groups, 400, inputs, generator=generator, dtype=torch.float64) @ mix + 1.0
    return x, torch.randn(groups, outputs, inputs, generator=generator, dtype=torch.float64)


def system(x: Tensor, *, centred: bool) -> Tensor:
    moments = Moments(x.shape[0], x.shape[2])
    moments.add(x)
    return ridged(moments.second(centred=centred), moments.mean)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8), st.integers(1, 4), st.booleans())
def test_restricted_is_the_least_squares_solution(
    seed: int, inputs: int, outputs: int, centred: bool
) -> None:
    x, weight = problem(seed, inputs, outputs, groups=2)
    kept = torch.arange(0, inputs, 2)
    got = restricted(system(x, centred=centred), weight, kept)
    for group in range(2):
        rows = x[group] - x[group].mean(0) if centred else x[group]
        # The ridge in least squares' own words: rows that hold every input's share in place.
        level = RIDGE * rows.square().mean() * len(rows)
        rows = torch.cat([rows, level.sqrt() * torch.eye(inputs)])
        wanted = torch.linalg.lstsq(rows[:, kept], rows @ weight[group].T).solution.T
        assert torch.allclose(got[group], wanted, rtol=1e-6, atol=1e-8)


def test_keeping_everything_changes_nothing() -> None:
    x, weight = problem(0, 6, 3)
    assert torch.allclose(restricted(system(x, centred=True), weight, torch.arange(6)), weight)


@pytest.mark.parametrize("constant", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("centred", [True, False])
def test_inputs_that_never_vary_are_no_trouble(constant: float, centred: bool) -> None:
    x = torch.full((1, 50, 4), constant)
    weight = torch.ones(1, 2, 4)
    got = restricted(system(x, centred=centred), weight, torch.tensor([0, 1, 2]))
    assert bool(torch.isfinite(got).all())


@pytest.mark.parametrize("wide", [False, True])
def test_moments_are_those_of_everything_that_was_added(wide: bool) -> None:
    inputs = 1100 if wide else 7
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 60, inputs, generator=generator, dtype=torch.float64) + 3.0
    y = torch.randn(2, 60, 3, generator=generator, dtype=torch.float64) - 1.0
    moments = Moments(2, inputs, 3)
    for part in (slice(0, 25), slice(25, 60)):
        moments.add(x[:, part], y[:, part])
    assert moments.count == 60
    assert torch.allclose(moments.mean, x.mean(1))
    assert torch.allclose(moments.target, y.mean(1))
    for centred in (False, True):
        a = x - x.mean(1, keepdim=True) if centred else x
        b = y - y.mean(1, keepdim=True) if centred else y
        assert torch.allclose(moments.second(centred=centred), a.mT @ a / 60)
        assert torch.allclose(moments.cross(centred=centred), a.mT @ b / 60)


def test_a_large_mean_does_not_drown_the_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(1, 4000, 5, generator=generator)
    moments = Moments(1, 5)
    moments.add(spread + 3000.0)
    wanted = torch.cov(spread[0].T, correction=0).double()
    assert torch.allclose(moments.second(centred=True)[0], wanted, atol=2e-3)


def test_half_precision_is_summed_in_single() -> None:
    x = torch.full((1, 5000, 1), 0.1, dtype=torch.float16)
    moments = Moments(1, 1)
    moments.add(x)
    assert float(moments.second(centred=False)) == pytest.approx(float(x[0, 0, 0]) ** 2, rel=1e-5)
