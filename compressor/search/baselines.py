"""Searches to compare LayerNAS with; same arguments, same result. Knows no torch."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Sequence

from compressor.cost import Limit
from compressor.search.ledger import Known, Ledger, OnOutcome, Score, open_ledger
from compressor.search.outcome import Executor, SearchResult
from compressor.search.reach import Reach
from compressor.search.settings import SearchSettings
from compressor.space import Architecture

_DEFAULTS = SearchSettings()
_REPEATS = 100  # draws in a row that bring nothing new before the space counts as spent
_POPULATION = 20  # of the evolution; Real et al. take 100 for 20,000 evaluations
_TOURNAMENT = 5
_STEPS = 100  # single steps that may bring a mutated network back into the band


def random_search(  # noqa: PLR0913
    *,
    sizes: Sequence[int],
    limits: Sequence[Limit],
    score: Score,
    settings: SearchSettings = _DEFAULTS,
    evaluations: int = 100,
    seed: int = 0,
    executor: Executor = map,
    known: Known | None = None,
    on_outcome: OnOutcome | None = None,
    names: Sequence[str] | None = None,
) -> SearchResult:
    """Scores networks drawn at random from the band below the limits; see `layer_nas`.

    Draws uniformly and rejects; where that finds nothing, grows networks in random order.
    """
    ledger = open_ledger(
        sizes=sizes,
        limits=limits,
        settings=settings,
        names=names,
        score=score,
        evaluations=evaluations,
        executor=executor,
        known=known,
        on_outcome=on_outcome,
    )
    ledger.ask(_drawn(ledger.reach, evaluations, random.Random(seed)))  # noqa: S311
    return ledger.result()


def regularised_evolution(  # noqa: PLR0913
    *,
    sizes: Sequence[int],
    limits: Sequence[Limit],
    score: Score,
    settings: SearchSettings = _DEFAULTS,
    evaluations: int = 100,
    seed: int = 0,
    executor: Executor = map,
    known: Known | None = None,
    on_outcome: OnOutcome | None = None,
    names: Sequence[str] | None = None,
) -> SearchResult:
    """Evolution with ageing (Real et al., arXiv 1802.01548) in the band; see `layer_nas`.

    Each child is the best of a few drawn from the population with one layer changed, brought
    back into the band by single steps of other layers; the oldest of the population dies.
    """
    ledger = open_ledger(
        sizes=sizes,
        limits=limits,
        settings=settings,
        names=names,
        score=score,
        evaluations=evaluations,
        executor=executor,
        known=known,
        on_outcome=on_outcome,
    )
    _Evolution(ledger, settings.batch, random.Random(seed)).run()  # noqa: S311
    return ledger.result()


def brute_force(  # noqa: PLR0913
    *,
    sizes: Sequence[int],
    limits: Sequence[Limit],
    score: Score,
    settings: SearchSettings = _DEFAULTS,
    evaluations: int = 100_000,
    seed: int = 0,
    executor: Executor = map,
    known: Known | None = None,
    on_outcome: OnOutcome | None = None,
    names: Sequence[str] | None = None,
) -> SearchResult:
    """Scores every network within the limits, up to `evaluations`; see `layer_nas`."""
    del seed  # nothing is drawn
    ledger = open_ledger(
        sizes=sizes,
        limits=limits,
        settings=settings,
        names=names,
        score=score,
        evaluations=evaluations,
        executor=executor,
        known=known,
        on_outcome=on_outcome,
    )
    reach = ledger.reach
    inside = (a for a in itertools.product(*map(range, reach.sizes)) if reach.inside(a))
    ledger.ask(list(itertools.islice(inside, evaluations)))
    return ledger.result()


def _drawn(reach: Reach, count: int, rng: random.Random) -> list[Architecture]:
    """Distinct networks, in the band as far as one is found there; the witness if none is."""
    found: dict[Architecture, None] = {}
    repeats = 0
    while len(found) < count and repeats < _REPEATS:
        network = reach.draw(rng)
        repeats = repeats + 1 if network is None or network in found else 0
        if network is not None:
            found[network] = None
    return list(found) or [reach.witness]


def repaired(
    reach: Reach, network: Sequence[int], layers: Sequence[int], rng: random.Random
) -> Architecture | None:
    """The network brought into the band by random single steps of the given layers.

    Down while some cost is above its limit, else up.

    Where the band is not known to hold a network, only below the limits. None where some steps
    do not get there.
    """
    wanted = reach.in_band if reach.holds_band else reach.inside
    options = list(network)
    for _ in range(_STEPS):
        if wanted(tuple(options)):
            return tuple(options)
        step = -1 if reach.above(tuple(options)) else 1
        free = [i for i in layers if 0 <= options[i] + step < reach.sizes[i]]
        if not free:
            return None
        options[rng.choice(free)] += step
    return None


class _Evolution:
    def __init__(self, ledger: Ledger, batch: int, rng: random.Random) -> None:
        self._ledger, self._reach = ledger, ledger.reach
        self._batch, self._rng = batch, rng
        self._population: deque[tuple[float, Architecture]] = deque(maxlen=_POPULATION)

    def run(self) -> None:
        """Until the evaluations are spent, or nothing new is found."""
        self._score(_drawn(self._reach, min(_POPULATION, self._ledger.left), self._rng))
        while self._ledger.left and self._population:
            batch: dict[Architecture, None] = {}
            for _ in range(_REPEATS):
                child = self._child()
                if child is not None and not self._ledger.asked(child):
                    batch[child] = None
                if len(batch) == self._batch:
                    break
            if not batch:
                batch = dict.fromkeys(self._fresh())
            if not batch:
                return
            self._score(list(batch))

    def _score(self, networks: list[Architecture]) -> None:
        self._ledger.ask(networks)
        for network in networks:
            score = self._ledger.score(network)
            if score is not None:
                self._population.append((score, network))

    def _fresh(self) -> list[Architecture]:
        """A random network, where the population's surroundings are used up."""
        drawn = (self._reach.draw(self._rng) for _ in range(_REPEATS))
        return [n for n in drawn if n is not None and not self._ledger.asked(n)][:1]

    def _child(self) -> Architecture | None:
        rivals = [self._rng.choice(self._population) for _ in range(_TOURNAMENT)]
        parent = max(rivals)[1]
        layers = [i for i, size in enumerate(self._reach.sizes) if size > 1]
        if not layers:
            return None
        layer = self._rng.choice(layers)
        options = [o for o in range(self._reach.sizes[layer]) if o != parent[layer]]
        child = list(parent)
        child[layer] = self._rng.choice(options)
        return repaired(self._reach, child, [i for i in layers if i != layer], self._rng)
