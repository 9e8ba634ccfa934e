"""Optuna's TPE and NSGA-II on a table, in a form in which they do well there.

The cost of a network is known before it is scored. So they start from random networks of the
band, and a proposal outside it is brought back by random single steps, as the children of the
evolution are, before it is scored and told: no evaluation is lost outside the band.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import optuna
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import TrialState

from benchmarks.tables import TIGHTNESS, NoisyScore, Table
from compressor.cost import Limit
from compressor.search.baselines import repaired
from compressor.search.reach import Reach
from compressor.space import Architecture

_START = 10  # random networks of the band to start from, TPE's own number
_POPULATION = 20  # of NSGA-II, as of the evolution
_TRIES = 20  # proposals that may be old or beyond repair before a random network takes their place

History = list[tuple[Architecture, float]]
"""Networks and their scores in the order of their evaluation."""


def tpe(table: Table, share: float, evaluations: int, seed: int) -> History:
    """Tree-structured Parzen estimator, with all layers in one model."""
    sampler = TPESampler(seed=seed, multivariate=True, n_startup_trials=_START)
    return _Rival(sampler, _START, table, share, seed).run(evaluations)


def nsga2(table: Table, share: float, evaluations: int, seed: int) -> History:
    """NSGA-II with one objective."""
    sampler = NSGAIISampler(seed=seed, population_size=_POPULATION)
    return _Rival(sampler, _POPULATION, table, share, seed).run(evaluations)


RIVALS: dict[str, Callable[[Table, float, int, int], History]] = {"tpe": tpe, "nsga2": nsga2}


class _Rival:
    def __init__(
        self, sampler: BaseSampler, start: int, table: Table, share: float, seed: int
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._reach = Reach(table.keys.sizes, [Limit(table.cost, table.high(share))], TIGHTNESS)
        self._score = NoisyScore(table, seed)
        self._rng = random.Random(seed)  # noqa: S311 - reproducible draws, no secrets
        self._start = start
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._ranges = {str(i): IntDistribution(0, n - 1) for i, n in enumerate(self._reach.sizes)}
        self._history: dict[Architecture, float] = {}

    def run(self, evaluations: int) -> History:
        """Scores new networks of the band, as many as there are."""
        while len(self._history) < evaluations:
            network = self._proposed() if len(self._history) >= self._start else self._random()
            network = network or self._random()
            if network is None:
                break
            self._history[network] = self._scored(network)
        return list(self._history.items())

    def _proposed(self) -> Architecture | None:
        for _ in range(_TRIES):
            trial = self._study.ask(self._ranges)
            self._study.tell(trial, state=TrialState.FAIL)  # the network that is scored is told
            options = [int(trial.params[name]) for name in self._ranges]
            network = repaired(self._reach, options, range(len(options)), self._rng)
            if network is not None and network not in self._history:
                return network
        return None

    def _random(self) -> Architecture | None:
        for _ in range(_TRIES):
            network = self._reach.draw(self._rng)
            if network is not None and network not in self._history:
                return network
        return None

    def _scored(self, network: Architecture) -> float:
        """Scores the network in a trial that the sampler takes for its own."""
        self._study.enqueue_trial(dict(zip(self._ranges, network, strict=True)))
        trial = self._study.ask(self._ranges)
        score = self._score(network)
        self._study.tell(trial, score)
        return score
