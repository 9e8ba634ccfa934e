"""LayerNAS guided by a model of the scores. Knows no torch.

Every network that is scored is complete and within the limits. After each score the model
(`compressor.search.surrogate`) learns; what it expects of the options, and some draws of what they
may be, are recombined layer by layer under the limits (`compressor.search.recombine`); of these
networks the one is scored next from which the largest improvement is expected. Where every option
was measured on its own before, that is the trend which the model corrects
(`compressor.search.trend`). Where a network's neighbours can be measured cheaply, the best network
so far is probed, and what its neighbours gain is recombined into steps from there
(`compressor.search.steps`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence

import numpy as np

from compressor.search.kernels import Effects, Floats, Networks
from compressor.search.ledger import Ledger
from compressor.search.moves import Asked, Probed
from compressor.search.settings import SearchSettings
from compressor.search.steps import Probe, steps
from compressor.search.supply import Supply
from compressor.search.surrogate import Surrogate
from compressor.search.trend import Hints, Trend
from compressor.space import Architecture

FIRST = 6  # networks scored before the model is asked
_DRAWS = 1  # draws from the model that are recombined besides what it expects
_LEAST = 1e-150
_REST = 8  # networks scored before the next probe, where the steps of the last one did not pay
_LOOKS = 3  # networks measured for each that is scored, before a bisection finds one


class Guided:
    """One run of the guided strategy."""

    def __init__(
        self,
        ledger: Ledger,
        settings: SearchSettings,
        rng: random.Random,
        hints: Hints | None = None,
        probe: Probe | None = None,
    ) -> None:
        self._reach = reach = ledger.reach
        flat = [[0.0] * size for size in reach.sizes]
        self._trend = Trend(reach.sizes, flat if hints is None else hints)
        self._hinted = hints is not None
        self._ledger, self._settings = ledger, settings
        self._draws = np.random.default_rng(rng.getrandbits(63))
        self._supply = Supply(reach, settings.buckets, rng, ledger.watch)
        self._surrogate = Surrogate(reach.sizes, deterministic=settings.deterministic)
        self._learned = 0
        self._networks: Networks = np.zeros((0, len(reach.sizes)), dtype=np.int64)
        self._rows: dict[Architecture, int] = {}  # the last one of each network
        self._probe, self._probed = probe, set[Architecture]()
        self._asked = self._rested = 0  # of the evaluations, those that were asked for here

    def run(self) -> None:
        """Scores networks until the evaluations are spent or nothing new is left."""
        self.start(min(FIRST, max(1, self._ledger.left // 4)))
        while self._ledger.left and self.step():
            pass

    def start(self, count: int) -> None:
        """Scores the first networks, without asking the model."""
        before = len(self._ledger.history)
        self._ledger.ask(self._first(count))
        self._asked = len(self._ledger.history) - before

    def step(self) -> bool:
        """Scores the next batch, or steps around the best; False where nothing new is left."""
        around = self._around()
        batch = around or self._batch(min(self._settings.batch, self._ledger.left))
        before = len(self._ledger.history)
        self._ledger.ask_again(batch)
        self._asked += len(self._ledger.history) - before
        if around:
            better = self._best() not in self._probed
            self._rested = self._asked + (0 if better else _REST)
        return bool(batch)

    def expected(self, networks: Sequence[Architecture]) -> list[float]:
        """The scores that are expected of networks, noise taken out as far as possible."""
        self._learn()
        means, _ = self._predicted(networks)
        return [float(mean) for mean in means]

    def _first(self, count: int) -> list[Architecture]:
        """The evenly filled network and random ones, or the best by several views of the hints."""
        first = dict.fromkeys(self._hinted_at(count)) if self._hinted else {}
        first.setdefault(self._reach.witness)
        while len(first) < count:
            network = self._supply.random(first)
            if network is None:
                break
            first[network] = None
        if self._ledger.watch is not None:
            self._ledger.watch(Asked(tuple(first)))
        return list(first)

    def _hinted_at(self, count: int) -> list[Architecture]:
        """The best network by the hints, then by hints whose layers weigh differently."""
        found: dict[Architecture, None] = {}
        views = [self._trend.effects()]
        views += [self._trend.view(self._draws) for _ in range(count - 1)]
        for view in views:
            network = self._supply.best(view, found)
            if network is not None:
                found[network] = None
        return list(found)

    def _around(self) -> list[Architecture]:
        """Some steps away from the best network, where a probe has not been there yet."""
        if self._probe is None or self._asked < self._rested:
            return []
        best = self._best()
        if best is None or best in self._probed:
            return []
        self._probed.add(best)
        costs = self._probe(best)
        if self._ledger.watch is not None:
            self._ledger.watch(Probed(best))
        seen = {a for a, _ in self._ledger.history}
        found = steps(self._supply, best, costs, seen)[: self._ledger.left]
        self._tell(found, learned=True)
        return found

    def _best(self) -> Architecture | None:
        """The network with the best score, or expectation, of the band if some are in it."""
        if not self._learn():
            return None
        means, _, networks = self._standing(())
        return networks[int(means.argmax())]

    def _believed(self, effects: Effects) -> Effects:
        """What the model believes of the options, on top of the trend."""
        return effects + self._trend.effects()

    def _learn(self) -> bool:
        """Tells the model what is new; failed networks count as the worst score."""
        history, known = self._ledger.history, self._learned
        if len(history) == known:
            return known > 0
        scores = [score for _, score in history if score is not None]
        if not scores:
            return False
        new = np.array([a for a, _ in history[known:]], dtype=np.int64)
        worst = min(scores)
        values = np.array([worst if score is None else score for _, score in history])
        self._networks = np.concatenate([self._networks, new])
        self._rows |= {a: row for row, (a, _) in enumerate(history[known:], known)}
        self._trend.fit(self._networks, values)
        self._surrogate.learn(new, values - self._trend.of(self._networks))
        self._learned = len(history)
        return True

    def _batch(self, count: int) -> list[Architecture]:
        """Networks to score next; each takes the ones before it as scored as expected."""
        batch: list[Architecture] = []
        learned = self._learn()
        while len(batch) < count:
            seen = (set(self._rows) or {a for a, _ in self._ledger.history}) | set(batch)
            network = self._promising(batch, seen) if learned else self._supply.random(seen)
            if network is None:
                break
            batch.append(network)
            self._tell([network], learned=learned)
            if learned and len(batch) < count:
                self._surrogate.pretend(np.array([network], dtype=np.int64))
        return batch

    def _tell(self, networks: Sequence[Architecture], *, learned: bool) -> None:
        if self._ledger.watch is not None:
            means, deviations = self._predicted(networks if learned else [])
            expected = zip(means.tolist(), deviations.tolist(), strict=True)
            self._ledger.watch(Asked(tuple(networks), tuple(expected)))

    def _promising(
        self, batch: Sequence[Architecture], seen: Collection[Architecture]
    ) -> Architecture | None:
        """The network whose score promises the largest gain.

        A gain is how much better the final choice is expected to become (the knowledge gradient,
        as if the networks were independent): a new network must beat the best, a network that was
        scored before, where scores are noisy, must change places with the best or the second.
        """
        new = self._candidates(seen)
        means, deviations, networks = self._standing(batch)
        gains = _gains(*self._predicted(new), means.max(), self._surrogate.noise)
        gains += self._supply.chances(new)
        if not self._settings.deterministic and len(means) > 1:
            rivals = np.full(len(means), means.max())
            rivals[means.argmax()] = np.partition(means, -2)[-2]
            closer = rivals - np.abs(means - rivals)
            again = _gains(closer, deviations, rivals, self._surrogate.noise)
            gains, new = np.append(gains, again), [*new, *networks]
        for place in np.argsort(-gains, kind="stable")[:_LOOKS].tolist():
            network: Architecture = new[place]
            if not self._supply.measured or self._supply.measured_inside(network):
                return network
        return self._supply.random(seen)

    def _candidates(self, seen: Collection[Architecture]) -> list[Architecture]:
        """New networks with large sums of expected and of drawn effects."""
        effects = [self._believed(self._surrogate.effects())]
        effects += [self._believed(self._surrogate.draw(self._draws)) for _ in range(_DRAWS)]
        found = self._supply.recombined(effects, seen)
        if found or not self._settings.deterministic:
            return found
        random = self._supply.random(seen)
        return [random] if random else []

    def _predicted(self, networks: Sequence[Architecture]) -> tuple[Floats, Floats]:
        if not networks:
            return np.zeros(0), np.zeros(0)
        places = np.array(networks, dtype=np.int64)
        means, deviations = self._surrogate.predict(places)
        return means + self._trend.of(places), deviations

    def _standing(self, batch: Sequence[Architecture]) -> tuple[Floats, Floats, list[Architecture]]:
        """What is believed of the networks that were scored, and of the batch: of the eligible."""
        means, deviations = self._surrogate.fitted()
        rows = self._rows | {a: len(self._networks) + row for row, a in enumerate(batch)}
        standing = {a: rows[a] for a in self._ledger.eligible(rows)} or rows
        places = list(standing.values())
        late = np.array(batch, dtype=np.int64).reshape(-1, self._networks.shape[1])
        trend = self._trend.of(np.concatenate([self._networks, late]))
        return means[places] + trend[places], deviations[places], list(standing)


def _gains(mean: Floats, deviation: Floats, best: Floats, noise: float) -> Floats:
    """Logarithm of the gain over `best` that one noisy score is expected to bring, [N]."""
    spread = np.maximum(deviation**2 / np.sqrt(deviation**2 + noise**2), _LEAST)
    ratio = np.maximum((mean - best) / spread, -1e6)
    density = -0.5 * ratio**2 - math.log(math.sqrt(2 * math.pi))
    below = np.array([math.erfc(-max(r, -5.0) / math.sqrt(2)) / 2 for r in ratio.tolist()])
    # far below, where the sum of the exact terms has no digits left: its limit
    near = np.log(np.maximum(np.exp(density) + ratio * below, _LEAST))
    far = density - 2 * np.log(np.maximum(-ratio, 1.0))
    gains: Floats = np.log(spread) + np.where(ratio > -5, near, far)
    return gains
