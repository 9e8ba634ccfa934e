"""The order of elimination against dropping one unit at a time and solving from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.refit import elimination
from compressor.refit.elimination import Reader, elimination_order
from compressor.refit.least_squares import restricted


@pytest.fixture(params=["at the end", "after each unit"], autouse=True)
def carried_out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small problems never fill the room for pending updates, so the room shrinks."""
    if request.param == "after each unit":
        monkeypatch.setattr(elimination, "_COLUMNS", 1)
        monkeypatch.setattr(elimination, "_SHARE", 10**6)


def reader(seed: int, units: int, per_unit: int, groups: int = 1, more: int = 0) -> Reader:
    """A random reader; `more` of its inputs belong to no unit, and units lie anywhere."""
    generator = torch.Generator().manual_seed(seed)
    size = units * per_unit + more
    x = torch.randn(groups, 3 * size, size, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(groups, size, size, generator=generator, dtype=torch.float64)
    system = x.mT @ x / x.shape[1] + 0.01 * torch.eye(size)
    weight = torch.randn(groups, 3, size, generator=generator)
    places = torch.randperm(size, generator=generator)[: units * per_unit]
    return Reader(system, weight, places.reshape(units, per_unit))


def error(found: Reader, units: Sequence[int]) -> float:
    """Share of the mean square that is lost when only these units remain, refitted."""
    gone = set(range(len(found.places))) - set(units)
    lost_inputs = {int(i) for unit in gone for i in found.places[unit]}
    kept = [i for i in range(found.weight.shape[2]) if i not in lost_inputs]
    weight = found.weight.double()
    lost = weight.clone()
    lost[:, :, kept] -= restricted(found.system, weight, torch.tensor(kept, dtype=torch.long))
    scale = ((weight @ found.system) * weight).sum()
    return float(((lost @ found.system) * lost).sum() / scale)


def naive(readers: Sequence[Reader], units: int) -> tuple[int, ...]:
    left, dropped = list(range(units)), []
    while len(left) > 1:
        costs = []
        for gone in left:
            rest = [u for u in left if u != gone]
            costs.append(sum(r.importance * error(r, rest) for r in readers))
        dropped.append(left.pop(costs.index(min(costs))))
    return (*left, *reversed(dropped))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 3), st.integers(1, 3),
    st.integers(0, 3), st.lists(st.sampled_from([0.25, 1.0, 3.0]), min_size=1, max_size=2),
)  # fmt: skip
def test_the_order_is_that_of_dropping_one_at_a_time(
    seed: int, units: int, per_unit: int, groups: int, more: int, importances: list[float]
) -> None:
    readers = [
        replace(reader(seed + i, units, per_unit, groups, more), importance=importance)
        for i, importance in enumerate(importances)
    ]
    assert elimination_order(readers, units) == naive(readers, units)


def test_a_longer_order_than_the_room_for_updates() -> None:
    found = [reader(0, 40, 4), reader(1, 40, 1)]
    assert elimination_order(found, 40) == naive(found, 40)


def test_a_copied_input_goes_before_a_unique_one() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    x = torch.cat([x, x[:, :1]], dim=1)
    system = x.T @ x / len(x) + 1e-3 * torch.eye(4)
    weight = torch.randn(1, 4, 3, generator=generator)
    weight = torch.cat([weight, weight[:, :, :1]], dim=2)
    order = elimination_order([Reader(system[None], weight, torch.arange(4)[:, None])], 4)
    assert order[-1] in (0, 3)


def test_readers_count_by_their_share_not_their_scale() -> None:
    weight = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(5))
    small, large = weight.clone(), torch.zeros_like(weight)
    small[..., 0] = 0.0  # this reader does not read input 0
    large[..., 0] = weight[..., 0]  # and this one reads nothing else, a thousand times larger
    system = torch.diag(torch.rand(4, dtype=torch.float64) + 1.0)[None]
    places: Tensor = torch.arange(4)[:, None]
    readers = [Reader(system, small, places), Reader(system, 1000 * large, places)]
    order = elimination_order(readers, 4)
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2, 3]


def test_one_unit_is_the_whole_order() -> None:
    assert elimination_order([reader(0, 1, 2)], 1) == (0,)
