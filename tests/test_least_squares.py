"""Refitted weights against least squares by another way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.least_squares import _State, covariance, elimination_order, restricted, ridged


def problem(seed: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Correlated inputs `[n, D]` with a mean, and a weight `[O, D]`."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(400, inputs, generator=generator, dtype=torch.float64) @ mix + 1.0
    return x, torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)


def moment(x: Tensor, *, centred: bool) -> Tensor:
    return covariance(x.T @ x, x.sum(0), len(x), centred=centred)


def error(system: Tensor, weight: Tensor, kept: list[int]) -> float:
    """What is left of the ridged variance when only `kept` inputs remain, refitted."""
    full = ridged(system)
    refitted = torch.zeros_like(weight)
    refitted[:, kept] = restricted(system, weight, torch.tensor(kept))
    lost = weight - refitted
    return float(((lost @ full) * lost).sum())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8), st.integers(1, 4), st.booleans())
def test_restricted_is_the_least_squares_solution(
    seed: int, inputs: int, outputs: int, centred: bool
) -> None:
    x, weight = problem(seed, inputs, outputs)
    kept = torch.arange(0, inputs, 2)
    system = moment(x, centred=centred)
    # The ridge in least squares' own words: rows that pull every input's contribution apart.
    level = torch.sqrt(ridged(system) - system).diagonal() * len(x) ** 0.5
    rows = torch.cat([x - x.mean(0) if centred else x, torch.diag(level)])
    wanted = torch.linalg.lstsq(rows[:, kept], rows @ weight.T).solution.T
    got = restricted(system, weight, kept)
    assert torch.allclose(got, wanted, rtol=1e-6, atol=1e-8)


def test_keeping_everything_changes_nothing() -> None:
    x, weight = problem(0, 6, 3)
    got = restricted(moment(x, centred=True), weight, torch.arange(6))
    assert torch.allclose(got, weight)


def test_inputs_that_never_vary_are_no_trouble() -> None:
    x, weight = problem(0, 4, 2)
    x[:, 2] = 0.0
    got = restricted(moment(x, centred=True), weight, torch.tensor([0, 1, 2]))
    assert bool(torch.isfinite(got).all())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 6), st.integers(1, 2))
def test_the_first_to_go_is_the_one_whose_loss_hurts_least(seed: int, units: int, p: int) -> None:
    x, weight = problem(seed, units * p, 3)
    system = moment(x, centred=True)
    places = torch.arange(units * p).reshape(units, p)
    order = elimination_order([(system, weight, places)], units)
    assert sorted(order) == list(range(units))
    errors = [
        error(system, weight, [i for i in range(units * p) if i // p != u]) for u in range(units)
    ]
    assert errors[order[-1]] == pytest.approx(min(errors), rel=1e-6)


def test_each_step_is_the_best_for_what_is_left() -> None:
    x, weight = problem(3, 6, 2)
    system = moment(x, centred=True)
    order = elimination_order([(system, weight, torch.arange(6)[:, None])], 6)
    for left in range(5, 0, -1):
        before = order[: left + 1]
        errors = {gone: error(system, weight, sorted(set(before) - {gone})) for gone in before}
        assert errors[order[left]] == pytest.approx(min(errors.values()), rel=1e-6)


def test_a_copied_input_goes_before_a_unique_one() -> None:
    x, weight = problem(1, 3, 4)
    x = torch.cat([x, x[:, :1]], dim=1)
    weight = torch.cat([weight, weight[:, :1]], dim=1)
    order = elimination_order([(moment(x, centred=True), weight, torch.arange(4)[:, None])], 4)
    assert order[-1] in (0, 3)


def test_consumers_count_by_their_share_not_their_scale() -> None:
    _, weight = problem(5, 4, 2)
    small, large = weight.clone(), torch.zeros_like(weight)
    small[:, 0] = 0.0  # this consumer does not read input 0
    large[:, 0] = weight[:, 0]  # and this one reads nothing else, a thousand times larger
    system = torch.diag(torch.rand(4, dtype=torch.float64) + 1.0)
    places = torch.arange(4)[:, None]
    order = elimination_order([(system, small, places), (system, 1000 * large, places)], 4)
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2, 3]


def test_dropping_several_at_once_is_dropping_them_one_by_one() -> None:
    x, weight = problem(2, 8, 3)
    system, places = moment(x, centred=True), torch.arange(8).reshape(4, 2)
    together, single = (_State(system, weight, places) for _ in range(2))
    together.drop(torch.tensor([0, 2]))
    single.drop(torch.tensor([0]))
    single.drop(torch.tensor([2]))
    left = torch.tensor([1, 3])
    assert torch.allclose(together.costs()[left], single.costs()[left])
