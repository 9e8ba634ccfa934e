"""The rows of a recombination, told in full, against trying all prefixes."""

from __future__ import annotations

import itertools
from typing import TypeAlias

import numpy as np
from hypothesis import given, settings

from compressor.search.kernels import Effects
from compressor.search.moves import Recombined
from compressor.search.recombine import best_of_each_cost
from compressor.space import Architecture
from compressor.trace.rows import Rows, count
from tests.test_recombine import cases

Case: TypeAlias = tuple[list[int], Effects, np.ndarray, tuple[int, int]]
START, WIDTH = 0.25, 0.125


def _recombined(case: Case) -> Recombined:
    _, effects, steps, (low, high) = case
    window = (low, max(0, high))
    (networks,) = best_of_each_cost([effects], steps, window)
    return Recombined(effects, steps, window, START, WIDTH, networks)


def _value(effects: Effects, prefix: Architecture) -> float:
    value = sum(float(effects.main[i, o]) for i, o in enumerate(prefix))
    pairs = itertools.pairwise(prefix)
    return value + sum(float(effects.pairs[i, a, b]) for i, (a, b) in enumerate(pairs))


def _cost(steps: np.ndarray, prefix: Architecture) -> int:
    return sum(int(steps[i, o]) for i, o in enumerate(prefix))


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_counts_are_those_of_keeping_the_best_of_each_bucket(case: Case) -> None:
    found = _recombined(case)
    sizes, effects, steps, _ = case
    kept: list[Architecture] = [()]
    for size, counts in zip(sizes, count(found), strict=True):
        tried = [(*prefix, option) for prefix in kept for option in range(size)]
        near = [p for p in tried if _cost(steps, p) <= found.window[1]]
        best: dict[tuple[int, int], Architecture] = {}
        for prefix in sorted(near, key=lambda p: -_value(effects, p)):
            best.setdefault((_cost(steps, prefix), prefix[-1]), prefix)
        kept = list(best.values())
        assert counts.tried == len(tried)
        assert counts.beyond == len(tried) - len(near)
        assert counts.beaten == len(near) - len(kept)
        assert counts.kept == len(kept)
        assert counts.buckets == len({_cost(steps, p) for p in kept})


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_buckets_hold_the_best_of_all_prefixes(case: Case) -> None:
    found = _recombined(case)
    sizes, effects, steps, _ = case
    rows = Rows(found)
    for layer, counts in enumerate(count(found)):
        best: dict[int, float] = {}
        for prefix in itertools.product(*map(range, sizes[: layer + 1])):
            cost = _cost(steps, prefix)
            if cost <= found.window[1]:
                best[cost] = max(best.get(cost, -np.inf), _value(effects, prefix))
        buckets = rows.buckets(layer)
        assert {b.number: b.value for b in buckets} == best
        assert [b.number for b in buckets] == sorted(best)
        for bucket in buckets:
            assert _value(effects, bucket.best) == bucket.value
            assert _cost(steps, bucket.best) == bucket.number
            assert bucket.share == START + WIDTH * bucket.number
        assert sum(b.stood for b in buckets) == counts.tried - counts.beyond
        assert sum(b.kept for b in buckets) == counts.kept


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_the_path_of_a_network_names_whom_it_met(case: Case) -> None:
    found = _recombined(case)
    sizes, effects, steps, _ = case
    rows = Rows(found)
    for network in itertools.islice(itertools.product(*map(range, sizes)), 30):
        path = rows.path(network)
        inside = all(_cost(steps, network[: n + 1]) <= found.window[1] for n in range(len(network)))
        assert bool(path) == inside
        for layer, step in enumerate(path):
            prefix = network[: layer + 1]
            assert (step.option, step.bucket) == (prefix[-1], _cost(steps, prefix))
            assert step.value == _value(effects, prefix)
            others = {
                p[-2]: p
                for p in sorted(
                    itertools.product(*map(range, sizes[: layer + 1])),
                    key=lambda p: _value(effects, p),
                )
                if layer and p[-2] != prefix[-2] and p[-1] == prefix[-1]
                and _cost(steps, p) == step.bucket
            }  # fmt: skip
            assert step.rivals == len(others)
            if step.rival is None:
                assert not others
            else:
                assert step.rival[-1] == prefix[-1]
                assert step.rival[-2] != prefix[-2]
                assert _cost(steps, step.rival) == step.bucket
                assert step.rival_value == _value(effects, step.rival)
                assert step.rival_value == max(_value(effects, p) for p in others.values())


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_what_comes_out_beats_everyone_it_met(case: Case) -> None:
    found = _recombined(case)
    rows = Rows(found)
    for row in found.networks.tolist():
        path = rows.path(tuple(row))
        assert path
        assert all(s.rival_value is None or s.value >= s.rival_value for s in path)
