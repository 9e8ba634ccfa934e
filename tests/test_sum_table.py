from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.cost import BatchCost, Limit, is_exact
from compressor.plain import decode, encode
from compressor.search.layer_nas import layer_nas
from compressor.sum_table import SumCost, SumData

DATA = SumData("latency", (2, 3), ((0,), (1, 0)), (1, 2, 10, 20, 30, 40, 50, 60), 100, 0.5)


def test_cells_of_the_groups_add_up():
    cost = SumCost(DATA)
    assert cost((0, 0)) == 0.5 * (100 + 1 + 10)
    assert cost((1, 2)) == 0.5 * (100 + 2 + 60)
    assert cost((1, 0)) == 0.5 * (100 + 2 + 20)
    assert isinstance(cost, BatchCost)
    assert is_exact(Limit(cost, 1))
    assert not cost.monotone


@given(st.lists(st.integers(-(2**40), 2**40), min_size=8, max_size=8))
def test_many_are_the_same_as_one_by_one_also_from_the_file(cells):
    data = replace(DATA, cells=tuple(cells), step=2.0**-40)
    cost = SumCost(decode(SumData, json.loads(json.dumps(encode(data)))))
    networks = list(itertools.product(range(2), range(3)))
    assert cost.many(np.array(networks)).tolist() == [SumCost(data)(a) for a in networks]


@pytest.mark.parametrize(
    "wrong",
    [
        {"cells": (1, 2)}, {"groups": ((0,), (2,))}, {"groups": ((-1,), (0, 1))}, {"step": 0.0},
        {"step": float("nan")}, {"constant": 2**60},
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"table|step"):
        SumCost(replace(DATA, **wrong))


@pytest.mark.parametrize("seed", range(6))
def test_the_search_stays_within_a_sum_that_falls_where_options_grow(seed):
    rng = np.random.default_rng(seed)
    sizes, groups = (4,) * 6, tuple((i, i + 1) for i in range(5))
    cells = tuple(int(c) for c in rng.integers(0, 1000, 16 * 5))
    cost = SumCost(SumData("latency", sizes, groups, cells, 0, 1.0))
    every = np.array(list(itertools.product(range(4), repeat=6)))
    high = float(np.quantile(cost.many(every), 0.3))
    values = rng.normal(size=(6, 4))

    def score(network):
        return float(values[np.arange(6), list(network)].sum())

    found = layer_nas(
        sizes=sizes, limits=[Limit(cost, high)], score=score, evaluations=60, seed=seed
    )
    assert cost(found.best.architecture) <= high
    inside = [score(tuple(n)) for n in every[cost.many(every) <= high].tolist()]
    assert np.mean(np.array(inside) > found.best.score) < 0.05
