"""A search with hints: faster where they are right, no worse in the end where they are wrong."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest

from compressor.cost import Limit
from compressor.errors import SearchError
from compressor.search.baselines import brute_force
from compressor.search.layer_nas import SearchSettings, layer_nas
from compressor.search.outcome import Outcome
from compressor.space import Architecture
from tests.test_search import Additive, Measured, Scorer, Table

SEEDS = range(5)


def problem(seed: int, layers: int = 6, options: int = 4) -> tuple[dict[str, Any], Table]:
    """An additive cost, an additive score, and its truth as what each option takes away."""
    draw = random.Random(seed)  # noqa: S311  (a reproducible problem)
    costs = [sorted(draw.sample(range(1, 60), options)) for _ in range(layers)]
    losses = [[*sorted(draw.sample(range(1, 99), options - 1))[::-1], 0] for _ in range(layers)]
    whole = sum(row[-1] for row in costs)
    arguments = {
        "sizes": [options] * layers,
        "limits": [Limit(Additive(costs), 0.6 * whole)],
        "score": lambda a: -sum(row[o] for row, o in zip(losses, a, strict=True)),
    }
    return arguments, losses


def needed(arguments: dict[str, Any], evaluations: int = 20, **more: Any) -> float:
    """Evaluations until the best network of all is scored; infinite where it is not."""
    best = brute_force(**arguments).best.score
    scorer = Scorer(arguments["score"])
    layer_nas(**{**arguments, "score": scorer}, evaluations=evaluations, **more)
    scores = [arguments["score"](a) for a in scorer.asked]
    return scores.index(best) + 1 if best in scores else math.inf


@pytest.mark.parametrize("seed", SEEDS)
def test_true_hints_find_the_best_at_once(seed: int) -> None:
    arguments, losses = problem(seed)
    hinted = needed(arguments, hints=losses)
    assert hinted <= 3
    assert needed(arguments) > hinted


@pytest.mark.parametrize("seed", SEEDS)
def test_hints_are_on_any_scale(seed: int) -> None:
    arguments, losses = problem(seed)
    scaled = [[1e-6 * value for value in row] for row in losses]
    assert needed(arguments, hints=scaled) <= 3


@pytest.mark.parametrize("seed", SEEDS)
def test_wrong_hints_still_end_at_the_best(seed: int) -> None:
    arguments, losses = problem(seed, layers=3)
    assert needed(arguments, 64, hints=[row[::-1] for row in losses]) <= 64


def test_hints_that_say_nothing_still_end_at_the_best() -> None:
    arguments, _ = problem(0, layers=3)
    assert needed(arguments, 64, hints=[[0.0] * 4] * 3) <= 64


def test_one_evaluation_is_the_best_by_the_hints() -> None:
    arguments, losses = problem(1)
    found = layer_nas(**arguments, evaluations=1, hints=losses)
    assert found.best.score == brute_force(**arguments).best.score
    assert found.evaluations == 1


def test_the_same_seed_gives_the_same_result() -> None:
    arguments, losses = problem(2)
    noisy = [[value + 20 * (i % 2) for i, value in enumerate(row)] for row in losses]
    first, second, other = (
        layer_nas(**arguments, evaluations=40, seed=seed, hints=noisy) for seed in (3, 3, 4)
    )
    assert first == second
    assert first.scored != other.scored


@pytest.mark.parametrize("prefix", [0, 1, 5, 6, 20, 29, 30])
def test_a_run_with_hints_resumes_from_any_prefix(prefix: int) -> None:
    arguments, losses = problem(3)
    plain = arguments["score"]
    arguments["score"] = lambda a: plain(a) if sum(a) % 7 else float("nan")
    more: dict[str, Any] = {"evaluations": 30, "hints": [row[::-1] for row in losses]}
    outcomes: dict[Architecture, Outcome] = {}
    whole = layer_nas(**arguments, **more, on_outcome=outcomes.__setitem__)
    known = {a: [outcome] for a, outcome in itertools.islice(outcomes.items(), prefix)}
    scorer = Scorer(arguments["score"])
    assert layer_nas(**{**arguments, "score": scorer}, **more, known=known) == whole
    assert scorer.asked == list(outcomes)[prefix:]


def test_hints_under_a_measured_limit() -> None:
    arguments, losses = problem(4)
    cost = arguments["limits"][0].cost
    latency = Measured(lambda a: 1.02 * cost(a))
    limits = [Limit(latency, arguments["limits"][0].high)]
    found = layer_nas(**{**arguments, "limits": limits}, evaluations=20, hints=losses)
    assert all(c.costs["latency"] <= limits[0].high for c in found.scored)
    assert len(latency.calls) < 6 * 20


def test_layers_of_different_sizes() -> None:
    costs, losses = [[1], [1, 5, 9], [2, 4], [1, 2, 3, 8]], [[0], [9, 2, 0], [3, 0], [7, 6, 1, 0]]
    arguments: dict[str, Any] = {
        "sizes": [1, 3, 2, 4],
        "limits": [Limit(Additive(costs), 14)],
        "score": lambda a: -sum(row[o] for row, o in zip(losses, a, strict=True)),
    }
    assert needed(arguments, hints=losses) <= 2


@pytest.mark.parametrize("hints", [(), [[0.0] * 4] * 5, [[0.0] * 3] * 6, [[float("nan")] * 4] * 6])
def test_hints_that_do_not_fit_the_layers(hints: Any) -> None:
    arguments, _ = problem(0)
    scorer = Scorer(arguments["score"])
    with pytest.raises(SearchError, match="hints must"):
        layer_nas(**{**arguments, "score": scorer}, hints=hints)
    assert not scorer.asked


def test_a_noisy_score_takes_hints_too() -> None:
    arguments, losses = problem(0)
    settings = SearchSettings(deterministic=False)
    found = layer_nas(**arguments, evaluations=20, hints=losses, settings=settings)
    assert found.best.score == brute_force(**arguments).best.score
