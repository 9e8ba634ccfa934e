"""Several budgets from one search: what it costs, what it promises."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.cost import Limit
from compressor.errors import BudgetError, InfeasibleError, SearchError
from compressor.search.baselines import brute_force
from compressor.search.frontier import layer_nas_frontier
from compressor.search.journal import Journal
from compressor.search.layer_nas import SearchSettings, layer_nas
from compressor.search.outcome import Outcome
from compressor.space import Architecture
from tests.test_guided import LAYERS, OPTIONS, Chain, Noisy, true_score
from tests.test_ranges import ExactTable, Table
from tests.test_steps import around, valley

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)


def problem() -> dict[str, Any]:
    cost = Chain()
    whole = cost((OPTIONS - 1,) * LAYERS)
    return {
        "sizes": [OPTIONS] * LAYERS,
        "budgets": [[Limit(cost, share * whole)] for share in SHARES],
    }


def test_five_budgets_for_the_price_of_one_search() -> None:
    """As good as a search of 40 evaluations for each budget, far better than one of 8."""
    sizes, budgets = problem().values()
    how: dict[str, Any] = {"sizes": sizes, "score": true_score}

    def separate(evaluations: int) -> np.ndarray:
        found = [layer_nas(limits=b, evaluations=evaluations, **how) for b in budgets]
        return np.array([result.best.score for result in found])

    results = layer_nas_frontier(budgets=budgets, evaluations=40, **how)
    together = np.array([result.best.score for result in results])
    assert {result.evaluations for result in results} == {40}
    assert (together > separate(40) - 0.05).all()
    assert together.sum() > separate(8).sum() + 0.1


def test_every_network_counts_for_every_budget_that_it_keeps() -> None:
    results = layer_nas_frontier(**problem(), score=true_score, evaluations=30)
    for result, (limit,) in zip(results, problem()["budgets"], strict=True):
        assert result.scored == results[0].scored
        inside = [c.score for c in result.scored if c.costs["madds"] <= limit.high]
        assert result.best.score == max(inside)
        assert result.best.costs["madds"] <= limit.high
    scores = [result.best.score for result in results]
    assert scores == sorted(scores, reverse=True)


class Recorded(Table):
    """A measured cost that remembers which networks were measured."""

    def __call__(self, architecture: Architecture) -> float:
        self.calls = [*getattr(self, "calls", []), architecture]
        return super().__call__(architecture)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), seed=st.integers(0, 3))
def test_a_looser_budget_never_scores_less_and_all_is_found_in_the_end(
    data: st.DataObject, seed: int
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    networks = list(itertools.product(*map(range, sizes)))
    kind = data.draw(st.sampled_from([Recorded, ExactTable]))
    cost = kind({a: data.draw(st.integers(1, 9)) for a in networks})
    scores = {a: data.draw(st.integers(0, 9)) for a in networks}
    highs = sorted(data.draw(st.sets(st.integers(1, 9), min_size=1, max_size=4)), reverse=True)
    count = data.draw(st.integers(len(highs), 2 * len(networks) + 4))
    problem: dict[str, Any] = {"sizes": sizes, "score": scores.__getitem__, "seed": seed}
    how = {**problem, "budgets": [[Limit(cost, h)] for h in highs], "evaluations": count}
    if min(cost.values.values()) > highs[-1]:
        with pytest.raises(InfeasibleError):
            layer_nas_frontier(**how)
        return
    found = layer_nas_frontier(**how)
    if kind is Recorded:
        assert len(cost.calls) == len(set(cost.calls))
    picks = [result.best.score for result in found]
    assert picks == sorted(picks, reverse=True)
    for result, high in zip(found, highs, strict=True):
        assert cost(result.best.architecture) <= high
        if count >= len(networks):
            any_fill = SearchSettings(tightness=0)
            best = brute_force(**problem, limits=[Limit(cost, high)], settings=any_fill).best
            assert result.best.score == best.score


def test_all_budgets_keep_a_limit_that_they_share() -> None:
    budgets = problem()["budgets"]
    widths = Chain().widths

    class Params(Chain):
        unit = "params"

        def many(self, architectures: np.ndarray) -> np.ndarray:
            return widths[np.arange(LAYERS), architectures].sum(axis=1).astype(float)

    params = Params()
    common = Limit(params, 0.7 * params((OPTIONS - 1,) * LAYERS))
    results = layer_nas_frontier(
        sizes=[OPTIONS] * LAYERS,
        budgets=[[*limits, common] for limits in budgets],
        score=true_score,
        evaluations=20,
    )
    assert all(c.costs["params"] <= common.high for c in results[0].scored)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("prefix", [0, 3, 17, 30])
def test_noisy_frontiers_resume_from_any_prefix(tmp_path: Path, prefix: int, batch: int) -> None:
    noisy = SearchSettings(deterministic=False, batch=batch)
    arguments = {**problem(), "evaluations": 30, "settings": noisy, "seed": 2}
    made: list[tuple[Architecture, Outcome]] = []
    whole = layer_nas_frontier(
        **arguments, score=Noisy(0.5), on_outcome=lambda a, o: made.append((a, o))
    )
    with Journal.open(tmp_path / "journal.sqlite", {}) as journal:
        for architecture, outcome in made[:prefix]:
            journal.record(architecture, outcome, {})
        known = journal.outcomes()
    score = Noisy(0.5, skip=prefix)
    assert layer_nas_frontier(**arguments, score=score, known=known) == whole
    assert score.asked == [a for a, _ in made[prefix:]]


def test_what_one_option_costs_alone_is_where_the_search_starts() -> None:
    scale = -np.log1p(np.arange(OPTIONS))
    hints = [[float(v) for v in scale] for _ in range(LAYERS)]
    results = layer_nas_frontier(**problem(), score=true_score, evaluations=15, hints=hints)
    assert [r.evaluations for r in results] == [15] * 5


def leaning(seed: int) -> dict[str, Any]:
    """Three budgets for a score whose layers lean on each other."""
    arguments = valley(seed)
    (limit,) = arguments.pop("limits")
    return {**arguments, "budgets": [[Limit(limit.cost, limit.high * n / 6)] for n in (8, 6.5, 5)]}


def test_a_probe_finds_better_networks_for_all_budgets() -> None:
    """Over many draws, as a single search hangs on the last digits of its arithmetic."""
    plain, probed = [], []
    for seed in range(16):
        arguments = leaning(seed)

        def probe(base: Architecture, told: dict[str, Any] = arguments) -> Any:
            return around(base, told["sizes"], told["score"])

        plain += layer_nas_frontier(**arguments, evaluations=36)
        probed += layer_nas_frontier(**arguments, evaluations=36, probe=probe)
    gains = [b.best.score - a.best.score for a, b in zip(plain, probed, strict=True)]
    assert sum(gains) > 0
    assert sum(gain > 0 for gain in gains) > sum(gain < 0 for gain in gains)


@pytest.mark.parametrize("seed", [0, 3])
def test_a_probe_is_asked_once_for_a_network_and_not_more_often_for_more_budgets(seed: int) -> None:
    """After steps that do not pay a search rests for eight evaluations of its own."""
    arguments = leaning(seed)
    asked: list[Architecture] = []

    def lying(base: Architecture) -> Any:
        asked.append(base)
        rows = around(base, arguments["sizes"], arguments["score"])
        return [[x if x == np.inf else -x for x in row] for row in rows]

    layer_nas_frontier(**arguments, evaluations=60, probe=lying)
    assert len(set(asked)) == len(asked)
    assert 3 <= len(asked) <= 3 * (1 + 20 // 8)


def test_nothing_to_decide() -> None:
    cost = Table({(): 1}, "madds", monotone=True)
    budgets = [[Limit(cost, 3)], [Limit(cost, 2)]]
    results = layer_nas_frontier(sizes=[], budgets=budgets, score=lambda _: 0.5)
    assert [r.best.architecture for r in results] == [(), ()]


def test_a_budget_out_of_reach_is_told_before_anything_is_scored() -> None:
    score = Noisy()
    budgets = [*problem()["budgets"], [Limit(Chain(), 1.0)]]
    with pytest.raises(InfeasibleError, match="limited to 1 and the cheapest"):
        layer_nas_frontier(sizes=[OPTIONS] * LAYERS, budgets=budgets, score=score)
    assert not score.asked


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"settings": SearchSettings(strategy="published")}, SearchError, "guided strategy only"),
        ({"evaluations": 4}, SearchError, "5 budgets and 4 evaluations"),
        ({"budgets": []}, SearchError, "0 budgets"),
        ({"budgets": [[]]}, BudgetError, "at least one limit"),
        ({"budgets": [[Limit(Chain(), 9e9), Limit(Chain(), 9e9)]]}, BudgetError, "takes one limit"),
    ],
)
def test_refuses_what_cannot_be_meant(
    change: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        layer_nas_frontier(**{**problem(), "score": true_score, **change})
