from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import ExportError
from compressor.latency.operators import Form, Operator
from compressor.latency.splitting import operators_of, split
from compressor.space import Architecture


def form(name: str) -> Form:
    return Form(name, "conv", b"node", (("", 20),), ("given", "weight"), (1, 1), (2, 2))


class Runtime:
    """Runs a chain: an operator reads what the one before it makes, and odd widths cost one more.

    The operator between two layers has another form where its input has the layer's first width.
    """

    def __init__(self, widths: Sequence[Sequence[int]]) -> None:
        self.widths = widths
        self.looks = 0

    def __call__(self, architecture: Architecture) -> list[Operator]:
        self.looks += 1
        chosen = [w[option] for w, option in zip(self.widths, architecture, strict=True)]
        found = [Operator("first", form("plain"), (1, 3, chosen[0], 3))]
        for place, (before, after) in enumerate(itertools.pairwise(chosen)):
            special = before == self.widths[place][0]
            found.append(Operator(f"op{place}", form(f"{special}"), (1, before, after, before)))
            if after % 2:
                found.append(Operator(f"reorder{place}", form("reorder"), (1, after, 1, 1)))
        return found


def every(widths: Sequence[Sequence[int]]) -> Iterator[Architecture]:
    return itertools.product(*(range(len(w)) for w in widths))


def asked(runtime: Runtime, architecture: Architecture) -> list[Operator]:
    return sorted(runtime(architecture), key=lambda o: o.key)


WIDTHS = st.lists(
    st.lists(st.integers(1, 40), min_size=2, max_size=5, unique=True).map(sorted),
    min_size=2,
    max_size=5,
)


@settings(max_examples=25, deadline=None)
@given(WIDTHS, st.integers(0, 3))
def test_every_architecture_runs_what_the_parts_say(widths, seed):
    runtime = Runtime(widths)
    parts = split([len(w) for w in widths], runtime, seed)
    wrong = [a for a in every(widths) if operators_of(parts, a) != asked(runtime, a)]
    # Of more architectures a rare one may follow rules that none of those looked at showed.
    count = math.prod(map(len, widths))
    assert len(wrong) <= (0 if count <= 64 else 0.15 * count)


@settings(max_examples=10, deadline=None)
@given(WIDTHS)
def test_most_spaces_are_known_without_an_error(widths):
    wrong = total = 0
    for seed in range(8):
        runtime = Runtime(widths)
        parts = split([len(w) for w in widths], runtime, seed)
        some = list(every(widths))[:: max(1, math.prod(map(len, widths)) // 100)]
        wrong += sum(operators_of(parts, a) != asked(runtime, a) for a in some)
        total += len(some)
    assert wrong <= 0.03 * total


def test_a_part_knows_the_layers_that_it_depends_on():
    parts = split([4, 4, 4, 4], Runtime([[2, 4, 6, 8]] * 4))
    assert {p.key: p.layers for p in parts} == {
        "first": (0,), "op0": (0, 1), "op1": (1, 2), "op2": (2, 3),
    }  # fmt: skip


def test_few_architectures_are_enough():
    runtime = Runtime([[2, 4, 6, 8, 9, 12]] * 12)
    split([6] * 12, runtime)
    assert runtime.looks < 80  # of two thousand million


def test_an_operator_that_follows_many_layers_at_once_is_refused_by_name():
    def look(architecture: Architecture) -> list[Operator]:
        return [Operator("sum", form("plain"), (1, 1, 1, sum(architecture)))]

    with pytest.raises(ExportError, match="'sum' follows none or more"):
        split([4, 5, 6, 4], look)


def test_operators_that_are_never_the_same_are_refused():
    calls = iter(range(10**6))

    def look(architecture: Architecture) -> list[Operator]:
        return [Operator("drifts", form("plain"), (1, 1, 1, next(calls)))]

    with pytest.raises(ExportError, match="whole networks must be measured"):
        split([3, 3], look)
