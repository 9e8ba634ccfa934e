from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.cost import BatchCost, Limit
from compressor.errors import InfeasibleError
from compressor.search.baselines import random_search, regularised_evolution
from compressor.search.journal import Journal
from compressor.search.layer_nas import SearchSettings, layer_nas
from compressor.search.outcome import Outcome
from compressor.space import Architecture

LAYERS, OPTIONS = 12, 6


class Chain:
    """Multiply-adds of a chain of convolutions, also for many networks at once."""

    unit = "madds"
    monotone = True

    def __init__(self) -> None:
        self.widths = np.array([8, 8, 16, 16, 32, 32] * 2)[:, None] * np.arange(1, OPTIONS + 1)

    def many(self, architectures: np.ndarray) -> np.ndarray:
        chosen = self.widths[np.arange(LAYERS), architectures]
        ends = [np.full((len(chosen), 1), 3), chosen, np.full((len(chosen), 1), 10)]
        widths = np.concatenate(ends, axis=1)
        return (widths[:, 1:] * widths[:, :-1]).sum(axis=1).astype(float)

    def __call__(self, architecture: Architecture) -> float:
        return float(self.many(np.array([architecture]))[0])


class Noisy:
    """Concave effects of very different strength; the n-th evaluation has the n-th noise."""

    def __init__(self, noise: float = 0.0, skip: int = 0) -> None:
        self.noise, self.asked = noise, []
        self._rng = np.random.default_rng(0)
        for _ in range(skip):
            self._rng.normal()

    def __call__(self, architecture: Architecture) -> float:
        self.asked.append(architecture)
        return true_score(architecture) + self.noise * float(self._rng.normal())


def true_score(architecture: Architecture) -> float:
    """The part of the score that is no noise."""
    strengths = [2.0**-i for i in range(LAYERS)]
    random.Random(5).shuffle(strengths)  # noqa: S311 - the same for all
    return sum(s * np.log1p(o) for s, o in zip(strengths, architecture, strict=True))


def problem(share: float = 0.5) -> dict[str, Any]:
    cost = Chain()
    high = share * cost((OPTIONS - 1,) * LAYERS)
    return {"sizes": [OPTIONS] * LAYERS, "limits": [Limit(cost, high)]}


def test_beats_random_networks_and_evolution_where_effects_add_up() -> None:
    def mean(search: Callable[..., Any]) -> float:
        arguments = {**problem(), "score": true_score, "evaluations": 40}
        return float(np.mean([search(**arguments, seed=s).best.score for s in range(4)]))

    assert mean(layer_nas) > 0.02 + max(mean(random_search), mean(regularised_evolution))


@pytest.mark.parametrize("batch", [1, 4])
def test_all_that_is_scored_is_in_the_band(batch: int) -> None:
    result = layer_nas(
        **problem(), score=true_score, evaluations=60, settings=SearchSettings(batch=batch)
    )
    high = problem()["limits"][0].high
    assert result.evaluations == len(result.scored) == 60
    assert all(0.97 * high <= c.costs["madds"] <= high for c in result.scored)


def test_batches_have_the_size_asked_for_and_lose_little() -> None:
    sizes: list[int] = []

    def executor(judge: Any, networks: Any) -> Any:
        items = list(networks)
        sizes.append(len(items))
        return map(judge, items)

    arguments = {**problem(), "score": true_score, "evaluations": 50}
    four = layer_nas(**arguments, settings=SearchSettings(batch=4), executor=executor)
    assert set(sizes[1:-1]) == {4}
    assert four.best.score > layer_nas(**arguments).best.score - 0.1


def test_noisy_scores_are_repeated_and_the_pick_is_no_lucky_one() -> None:
    arguments = {**problem(), "evaluations": 60, "settings": SearchSettings(deterministic=False)}
    lucky, picked = [], []
    for seed in range(4):
        score = Noisy(noise=0.5)
        result = layer_nas(**arguments, score=score, seed=seed)
        assert result.evaluations == len(score.asked) == 60
        assert len(set(score.asked)) < 60
        picked.append(true_score(result.best.architecture))
        other = random_search(**arguments, score=Noisy(noise=0.5), seed=seed)
        lucky.append(true_score(other.best.architecture))
    assert np.mean(picked) > np.mean(lucky) + 0.05


def test_fixed_scores_are_never_repeated() -> None:
    score = Noisy()
    result = layer_nas(**problem(), score=score, evaluations=60)
    assert len(set(score.asked)) == 60
    assert result.best.score == max(c.score for c in result.scored)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("prefix", [0, 1, 5, 29, 40])
def test_noisy_searches_resume_from_any_prefix(tmp_path: Path, prefix: int, batch: int) -> None:
    noisy = SearchSettings(deterministic=False, batch=batch)
    arguments = {**problem(), "evaluations": 40, "settings": noisy}
    made: list[tuple[Architecture, Outcome]] = []
    whole = layer_nas(**arguments, score=Noisy(0.5), on_outcome=lambda a, o: made.append((a, o)))
    with Journal.open(tmp_path / "journal.sqlite", {}) as journal:
        for architecture, outcome in made[:prefix]:
            journal.record(architecture, outcome, {})
        known = journal.outcomes()
    score = Noisy(0.5, skip=prefix)
    assert layer_nas(**arguments, score=score, known=known) == whole
    assert score.asked == [a for a, _ in made[prefix:]]
    assert any(outcome.repeat for _, outcome in made)


_PROGRAM = """
from concurrent.futures import ThreadPoolExecutor
from tests.test_guided import in_batches, scored
print(scored(), in_batches(ThreadPoolExecutor(3).map))
"""


def scored() -> list[Architecture]:
    """What a search scores, in order."""
    return [c.architecture for c in layer_nas(**problem(), score=true_score, evaluations=25).scored]


def in_batches(executor: Any) -> list[Architecture]:
    """The same, four at once."""
    four = SearchSettings(batch=4)
    arguments = {**problem(), "score": true_score, "evaluations": 25, "settings": four}
    return [c.architecture for c in layer_nas(**arguments, executor=executor).scored]


def test_the_same_in_another_process() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": "."},
            capture_output=True, text=True, check=True,
        ).stdout
        for hashes in ("1", "2")
    }  # fmt: skip
    assert outputs == {f"{scored()} {in_batches(map)}\n"}


def test_networks_of_many_layers_are_proposed_near_the_limit() -> None:
    """With fewer buckets than layers, so that most options cost less than half a bucket."""
    few, many = 0.0, 0.0
    for seed in range(8):
        arguments = many_layers(seed)
        drawn = random_search(**arguments).best.score
        few += layer_nas(**arguments, settings=SearchSettings(buckets=60)).best.score - drawn
        many += layer_nas(**arguments, settings=SearchSettings(buckets=1000)).best.score - drawn
    assert few > 0.7 * many > 0


def many_layers(seed: int) -> dict[str, Any]:
    """Eighty layers of six options, which add up in cost and in score."""
    rng = np.random.default_rng(seed)
    widths = rng.random((80, 6)).cumsum(axis=1)
    strengths = np.exp(rng.normal(size=80))

    class Sum:
        unit, monotone = "madds", True

        def __call__(self, architecture: Architecture) -> float:
            return float(widths[np.arange(80), architecture].sum())

    return {
        "sizes": [6] * 80,
        "limits": [Limit(Sum(), 0.5 * widths[:, -1].sum())],
        "score": lambda architecture: float(strengths @ np.log1p(architecture)),
        "evaluations": 40,
    }


class Steps:
    """A latency with steps: some smaller options are slower."""

    unit = "latency"
    monotone = False

    def __init__(self, times: dict[Architecture, int]) -> None:
        self._times = times
        self.calls = 0

    def __call__(self, architecture: Architecture) -> float:
        self.calls += 1
        return float(self._times[architecture])


class ManySteps(Steps):
    """The same as an exact table."""

    def many(self, architectures: np.ndarray) -> np.ndarray:
        return np.array([self(tuple(row)) for row in architectures.tolist()])


@pytest.mark.parametrize("cost", [Steps, ManySteps])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_network_is_lost_where_costs_are_not_monotone(cost: type[Steps], data: Any) -> None:
    networks = list(itertools.product(range(3), range(2), range(3)))
    latency = cost({a: data.draw(st.integers(1, 9)) for a in networks})
    feasible = {a for a in networks if latency(a) <= 4}
    score = {a: data.draw(st.integers(0, 9)) for a in networks}
    arguments: dict[str, Any] = {"sizes": [3, 2, 3], "limits": [Limit(latency, 4)]}
    assert isinstance(latency, BatchCost) == (cost is ManySteps)
    try:
        result = layer_nas(
            **arguments, score=score.__getitem__, settings=SearchSettings(tightness=0)
        )
    except InfeasibleError:
        assert not feasible
        return
    assert {c.architecture for c in result.scored} == feasible
    assert result.best.score == max(score[a] for a in feasible)


def test_a_slow_cost_is_measured_a_few_times_for_each_score() -> None:
    table = Chain()
    whole = table((OPTIONS - 1,) * LAYERS)

    class Latency:
        unit = "latency"
        monotone = False
        calls = 0

        def __call__(self, architecture: Architecture) -> float:
            self.calls += 1
            wave = 1 + 0.05 * np.sin(sum(architecture))
            return table(architecture) ** 0.7 / whole**0.7 * wave

    latency = Latency()
    result = layer_nas(
        sizes=[OPTIONS] * LAYERS, limits=[Limit(latency, 0.6)], score=true_score, evaluations=60
    )
    assert all(c.costs["latency"] <= 0.6 for c in result.scored)
    assert result.evaluations == 60
    assert latency.calls < 3 * 60
    assert result.best.costs["latency"] > 0.9 * 0.6


def test_two_exact_limits_are_both_filled_by_what_they_allow() -> None:
    madds = Chain()

    class Params(Chain):
        unit = "params"

        def many(self, architectures: np.ndarray) -> np.ndarray:
            return self.widths[np.arange(LAYERS), architectures].sum(axis=1).astype(float)

    full = (OPTIONS - 1,) * LAYERS
    limits = [Limit(madds, 0.5 * madds(full)), Limit(Params(), 0.6 * Params()(full))]
    result = layer_nas(sizes=[OPTIONS] * LAYERS, limits=limits, score=true_score, evaluations=60)
    assert result.evaluations == 60
    for candidate in result.scored:
        shares = [candidate.costs[limit.cost.unit] / limit.high for limit in limits]
        assert 0.97 <= max(shares) <= 1
