"""Steps from a network: what pays by its neighbours' costs, within the limits."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.cost import Limit
from compressor.errors import RunError, SearchError
from compressor.search.baselines import brute_force
from compressor.search.journal import Journal
from compressor.search.layer_nas import SearchSettings, layer_nas
from compressor.search.outcome import Outcome
from compressor.search.reach import Reach
from compressor.search.recall import recalled
from compressor.search.steps import steps
from compressor.search.supply import Supply
from compressor.space import Architecture
from tests.test_hints import problem
from tests.test_search import Additive, Measured, Scorer

COSTS = [[1, 4, 9, 16]] * 4


def supply(limit: float, tightness: float = 0.0) -> Supply:
    reach = Reach([4] * 4, [Limit(Additive(COSTS), limit)], tightness)
    return Supply(reach, None, random.Random(0))  # noqa: S311  (a reproducible draw)


def around(base: Architecture, sizes: list[int], score: Any) -> tuple[tuple[float, ...], ...]:
    """What each neighbour by one step loses."""
    return tuple(
        tuple(
            score(base) - score((*base[:layer], o, *base[layer + 1 :]))
            if abs(o - base[layer]) <= 1
            else math.inf
            for o in range(size)
        )
        for layer, size in enumerate(sizes)
    )


def test_the_best_of_all_neighbours_at_once_where_gains_add_up() -> None:
    base = (1, 1, 1, 1)
    losses = ((5.0, 0.0, -9.0, math.inf), (1.0, 0.0, -2.0, math.inf)) * 2
    # 4 a layer: a step up costs 5, a step down brings 3, and 20 are allowed
    found = steps(supply(20), base, losses, set())
    assert found[0] == (2, 0, 2, 0)


def test_tolls_leave_fewer_changes_and_what_is_seen_is_left_out() -> None:
    base = (1, 1, 1, 1)
    losses = (
        (8.0, 0.0, -9.0, math.inf), (8.0, 0.0, -0.3, math.inf),
        (8.0, 0.0, -3.0, math.inf), (8.0, 0.0, -3.0, math.inf),
    )  # fmt: skip
    found = steps(supply(64), base, losses, set())
    assert found[0] == (2, 1, 2, 2)  # what gains little is not trusted
    changes = [sum(o != 1 for o in network) for network in found]
    assert changes == sorted(changes, reverse=True)
    assert len(set(changes)) > 1
    assert steps(supply(64), base, losses, {found[0]}) == found[1:]


def test_nothing_where_no_neighbour_pays() -> None:
    losses = ((1.0, 0.0, 1.0, math.inf),) * 4
    assert steps(supply(64), (1, 1, 1, 1), losses, set()) == []
    assert steps(supply(64), (1, 1, 1, 1), ((math.inf, 0.0, math.inf, math.inf),) * 4, set()) == []


@given(st.data())
def test_steps_keep_the_limit_and_go_to_neighbours_alone(data: st.DataObject) -> None:
    base = tuple(data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4)))
    limit = data.draw(st.integers(4, 64))
    gains = st.floats(-5, 5)
    losses = tuple(
        tuple(
            0.0 if o == own else data.draw(gains) if abs(o - own) == 1 else math.inf
            for o in range(4)
        )
        for own in base
    )
    for network in steps(supply(limit), base, losses, set()):
        assert sum(COSTS[0][o] for o in network) <= limit
        assert all(abs(a - b) <= 1 for a, b in zip(network, base, strict=True))
        assert sum(row[o] for row, o in zip(losses, network, strict=True)) < 0


@pytest.mark.parametrize(
    "losses",
    [
        ((0.0,) * 4,) * 3,
        ((0.0,) * 3,) * 4,
        ((1.0, 1.0, 0.0, 0.0),) * 4,
        ((0.0, 0.0, math.nan, 0.0),) * 4,
        ((0.0, 0.0, -math.inf, 0.0),) * 4,
    ],
)
def test_refuses_what_no_probe_may_say(losses: Any) -> None:
    with pytest.raises(SearchError, match="a probe must give"):
        steps(supply(20), (1, 1, 1, 1), losses, set())


# ---- in the search


def valley(seed: int) -> dict[str, Any]:
    """A score whose layers lean on each other: hints from the original say little."""
    arguments, losses = problem(seed, layers=8)
    draw = random.Random(seed)  # noqa: S311  (a reproducible problem)
    weights = [draw.uniform(0.2, 3.0) for _ in losses]

    def score(a: Architecture) -> float:
        own = [w * row[o] for w, row, o in zip(weights, losses, a, strict=True)]
        return -(sum(own) ** 2) / 1e3 - 0.02 * sum(x * y for x, y in itertools.pairwise(own))

    return {**arguments, "score": score}


def test_a_probe_finds_better_networks_with_the_same_evaluations() -> None:
    """Over many draws, as a single search hangs on the last digits of its arithmetic."""
    gains = []
    for seed in range(40):
        arguments = valley(seed)

        def probe(base: Architecture, told: dict[str, Any] = arguments) -> Any:
            return around(base, told["sizes"], told["score"])

        plain = layer_nas(**arguments, evaluations=24).best.score
        gains.append(layer_nas(**arguments, evaluations=24, probe=probe).best.score - plain)
    assert sum(gains) > 0
    assert sum(gain > 0 for gain in gains) > 1.5 * sum(gain < 0 for gain in gains)


def test_a_probe_is_asked_rarely_and_of_the_best_network_alone() -> None:
    arguments = valley(1)
    scorer = Scorer(arguments["score"])
    asked: list[tuple[int, Architecture]] = []

    def probe(base: Architecture) -> Any:
        scores = [arguments["score"](a) for a in scorer.asked]
        assert arguments["score"](base) == max(scores)
        asked.append((len(scores), base))
        return around(base, arguments["sizes"], arguments["score"])

    layer_nas(**{**arguments, "score": scorer}, evaluations=60, probe=probe)
    assert 2 <= len(asked) <= 15
    assert len({base for _, base in asked}) == len(asked)
    assert len(scorer.asked) == 60


def test_a_lying_probe_does_not_keep_the_search_from_the_best() -> None:
    arguments, _ = problem(0, layers=3)

    def probe(base: Architecture) -> Any:
        return [
            [x if x == math.inf else -x for x in row]
            for row in around(base, [4] * 3, arguments["score"])
        ]

    found = layer_nas(**arguments, evaluations=64, probe=probe)
    assert found.best.score == brute_force(**arguments).best.score


@pytest.mark.parametrize("prefix", [0, 1, 7, 8, 9, 10, 11, 12, 20, 30])
def test_a_run_with_a_probe_resumes_from_any_prefix(prefix: int) -> None:
    arguments = valley(2)
    more: dict[str, Any] = {
        "evaluations": 30,
        "probe": lambda base: around(base, arguments["sizes"], arguments["score"]),
    }
    outcomes: dict[Architecture, Outcome] = {}
    whole = layer_nas(**arguments, **more, on_outcome=outcomes.__setitem__)
    known = {a: [outcome] for a, outcome in itertools.islice(outcomes.items(), prefix)}
    scorer = Scorer(arguments["score"])
    assert layer_nas(**{**arguments, "score": scorer}, **more, known=known) == whole
    assert scorer.asked == list(outcomes)[prefix:]


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_probe_under_a_measured_limit(deterministic: bool) -> None:
    arguments = valley(3)
    cost = arguments["limits"][0].cost
    latency = Measured(lambda a: cost(a) * (1.02 + 0.05 * (a[0] == 2)))
    limits = [Limit(latency, arguments["limits"][0].high)]
    found = layer_nas(
        **{**arguments, "limits": limits},
        evaluations=30,
        settings=SearchSettings(deterministic=deterministic),
        probe=lambda base: around(base, arguments["sizes"], arguments["score"]),
    )
    assert all(c.costs["latency"] <= limits[0].high for c in found.scored)


# ---- answers kept in the journal


def test_answers_are_kept_and_not_asked_for_again(tmp_path: Any) -> None:
    asked = []

    def probe(base: Architecture) -> Any:
        asked.append(base)
        return ((0.0, 0.1, math.inf), (-1e-9, 0.0))

    for _ in range(2):
        with Journal.open(tmp_path / "journal.sqlite", {}) as journal:
            assert recalled(probe, journal)((0, 1)) == ((0.0, 0.1, math.inf), (-1e-9, 0.0))
    assert asked == [(0, 1)]


@pytest.mark.parametrize("content", [3, "x", [3], [[0.0, "x"]], [[True]], {"a": 1}])
def test_foreign_answers_are_refused(tmp_path: Any, content: Any) -> None:
    with Journal.open(tmp_path / "journal.sqlite", {}) as journal:
        journal.put("probe [0]", content)
        with pytest.raises(RunError, match="rows of numbers"):
            recalled(lambda _: ((0.0,),), journal)((0,))
