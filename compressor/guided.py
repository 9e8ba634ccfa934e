"""LayerNAS guided by a model of the scores. Knows no torch.

Every network that is scored is complete and within the limits. After each score the model
(`compressor.surrogate`) learns; what it expects of the options, and some draws of what they may
be, are recombined layer by layer under the limits (`compressor.recombine`); of these networks the
one is scored next from which the largest improvement is expected. Where every option was measured
on its own before, that is the trend which the model corrects (`compressor.trend`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np

from compressor.kernels import Effects, Floats, Networks
from compressor.ledger import Ledger
from compressor.settings import SearchSettings
from compressor.space import Architecture
from compressor.supply import Supply
from compressor.surrogate import Surrogate
from compressor.trend import Hints, Trend

_FIRST = 6  # networks scored before the model is asked
_DRAWS = 2  # draws from the model that are recombined besides what it expects
_LOOKS = 3  # networks measured for each that is scored, before a bisection finds one


class Guided:
    """One run of the guided strategy."""

    def __init__(
        self,
        ledger: Ledger,
        settings: SearchSettings,
        rng: random.Random,
        hints: Hints | None = None,
    ) -> None:
        self._reach = reach = ledger.reach
        flat = [[0.0] * size for size in reach.sizes]
        self._trend = Trend(reach.sizes, flat if hints is None else hints)
        self._hinted = hints is not None
        self._ledger, self._settings = ledger, settings
        self._draws = np.random.default_rng(rng.getrandbits(63))
        self._supply = Supply(reach, settings.buckets, rng)
        self._surrogate = Surrogate(reach.sizes, deterministic=settings.deterministic)
        self._learned = 0

    def run(self) -> None:
        """Scores networks until the evaluations are spent or nothing new is left."""
        self._ledger.ask(self._first())
        while self._ledger.left:
            batch = self._batch(min(self._settings.batch, self._ledger.left))
            if not batch:
                return
            self._ledger.ask(batch)

    def expected(self, networks: Sequence[Architecture]) -> list[float]:
        """The scores that are expected of networks, noise taken out as far as possible."""
        self._learn()
        means, _ = self._predict(np.array(networks, dtype=np.int64))
        return [float(mean) for mean in means]

    def _first(self) -> list[Architecture]:
        """The evenly filled network and random ones, or the best by several views of the hints."""
        count = min(_FIRST, max(1, self._ledger.left // 4))
        first: dict[Architecture, None] = {}
        if self._hinted:
            first = dict.fromkeys(self._hinted_at(count))
        first.setdefault(self._reach.witness)
        while len(first) < count:
            network = self._supply.random(first)
            if network is None:
                break
            first[network] = None
        return list(first)

    def _hinted_at(self, count: int) -> list[Architecture]:
        """The best network by the hints, then by hints whose layers weigh differently."""
        found: dict[Architecture, None] = {}
        views = [self._trend.effects()]
        views += [self._trend.view(self._draws) for _ in range(count - 1)]
        for view in views:
            networks = self._supply.recombined([view], found)
            if not len(networks):
                continue
            for place in np.argsort(-view.of(networks), kind="stable").tolist():
                network = tuple(networks[place].tolist())
                if not self._supply.measured or self._supply.measured_inside(network):
                    found[network] = None
                    break
        return list(found)

    def _predict(self, networks: Networks) -> tuple[Floats, Floats]:
        """Mean and standard deviation of scores, each [N]."""
        mean, deviation = self._surrogate.predict(networks)
        return mean + self._trend.of(networks), deviation

    def _believed(self, effects: Effects) -> Effects:
        """What the model believes of the options, on top of the trend."""
        trend = self._trend.effects()
        return Effects(effects.main + trend.main, effects.pairs + trend.pairs)

    def _learn(self) -> bool:
        """Tells the model what is new; failed networks count as the worst score."""
        history = self._ledger.history
        if len(history) == self._learned:
            return self._learned > 0
        scores = [score for _, score in history if score is not None]
        if not scores:
            return False
        new = np.array([a for a, _ in history[self._learned :]], dtype=np.int64)
        worst = min(scores)
        values = np.array([worst if score is None else score for _, score in history])
        everything = np.array([a for a, _ in history], dtype=np.int64)
        self._trend.fit(everything, values)
        self._surrogate.learn(
            new.reshape(-1, len(self._reach.sizes)), values - self._trend.of(everything)
        )
        self._learned = len(history)
        return True

    def _batch(self, count: int) -> list[Architecture]:
        batch: dict[Architecture, None] = {}
        learned = self._learn()
        while len(batch) < count:
            seen = {a for a, _ in self._ledger.history} | batch.keys()
            network = self._promising(seen) if learned else None
            network = network or self._supply.random(seen)
            if network is None:
                break
            batch[network] = None
            if learned and len(batch) < count:
                self._surrogate.pretend(np.array([network], dtype=np.int64))
        return list(batch)

    def _promising(self, seen: set[Architecture]) -> Architecture | None:
        """The network with the largest expected improvement among those recombined."""
        effects = [self._believed(self._surrogate.effects())]
        effects += [self._believed(self._surrogate.draw(self._draws)) for _ in range(_DRAWS)]
        networks = self._supply.recombined(effects, seen)
        if not len(networks):
            return None
        gains = _improvement(*self._predict(networks), self._best())
        looks = _LOOKS if self._supply.measured else 1
        for place in np.argsort(-gains, kind="stable")[:looks].tolist():
            network = tuple(networks[place].tolist())
            if not self._supply.measured or self._supply.measured_inside(network):
                return network
        return None

    def _best(self) -> float:
        """What must be improved: the best score, or the best expectation where scores are noisy."""
        scores = self._ledger.scores()
        inside = [a for a in scores if self._reach.in_band(a)] or list(scores)
        if self._settings.deterministic:
            return max(scores[a] for a in inside)
        return float(self._predict(np.array(inside, dtype=np.int64))[0].max())


def _improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """Logarithm of the expected improvement over `best`, [N]."""
    ratio = (mean - best) / deviation
    density = -0.5 * ratio**2 - math.log(math.sqrt(2 * math.pi))
    below = np.array([math.erfc(-max(r, -5.0) / math.sqrt(2)) / 2 for r in ratio.tolist()])
    # far below, where the difference of the exact terms has no digits left: its limit
    near = np.log(np.maximum(np.exp(density) + ratio * below, 1e-300))
    far = density - 2 * np.log(np.maximum(-ratio, 1.0))
    gains: Floats = np.log(deviation) + np.where(ratio > -5, near, far)
    return gains
