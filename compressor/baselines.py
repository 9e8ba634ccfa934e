"""Searches to compare LayerNAS with; same arguments, same result. Knows no torch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

from compressor.cost import Limit
from compressor.ledger import Ledger, OnOutcome, Score
from compressor.outcome import Executor, Outcome, SearchResult
from compressor.reach import Reach
from compressor.search import SearchSettings, make_reach
from compressor.space import Architecture

_DEFAULTS = SearchSettings()
_DRAWS = 200  # uniform draws tried before a network is grown in random order instead
_REPEATS = 100  # draws in a row that bring nothing new before the space counts as spent


def random_search(  # noqa: PLR0913
    *,
    sizes: Sequence[int],
    limits: Sequence[Limit],
    score: Score,
    settings: SearchSettings = _DEFAULTS,
    evaluations: int = 100,
    seed: int = 0,
    executor: Executor = map,
    known: Mapping[Architecture, Outcome] | None = None,
    on_outcome: OnOutcome | None = None,
    names: Sequence[str] | None = None,
) -> SearchResult:
    """Scores networks drawn at random from the band below the limits; see `layer_nas`.

    Draws uniformly and rejects; where that finds nothing, grows networks in random order.
    """
    reach = make_reach(sizes, limits, settings, names)
    ledger = Ledger(
        reach=reach,
        score=score,
        evaluations=evaluations,
        executor=executor,
        known=known,
        on_outcome=on_outcome,
    )
    ledger.ask(_drawn(reach, evaluations, random.Random(seed)))  # noqa: S311
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
    known: Mapping[Architecture, Outcome] | None = None,
    on_outcome: OnOutcome | None = None,
    names: Sequence[str] | None = None,
) -> SearchResult:
    """Scores every network within the limits, up to `evaluations`; see `layer_nas`."""
    del seed  # nothing is drawn
    reach = make_reach(sizes, limits, settings, names)
    ledger = Ledger(
        reach=reach,
        score=score,
        evaluations=evaluations,
        executor=executor,
        known=known,
        on_outcome=on_outcome,
    )
    inside = (a for a in itertools.product(*map(range, reach.sizes)) if reach.inside(a))
    ledger.ask(list(itertools.islice(inside, evaluations)))
    return ledger.result()


def _drawn(reach: Reach, count: int, rng: random.Random) -> list[Architecture]:
    """Distinct networks, in the band as far as one is found there; the witness if none is."""
    found: dict[Architecture, None] = {}
    repeats = 0
    while len(found) < count and repeats < _REPEATS:
        network = _draw(reach, rng)
        repeats = repeats + 1 if network is None or network in found else 0
        if network is not None:
            found[network] = None
    return list(found) or [reach.witness]


def _draw(reach: Reach, rng: random.Random) -> Architecture | None:
    if reach.banded:
        for _ in range(_DRAWS):
            network = tuple(rng.randrange(size) for size in reach.sizes)
            if reach.in_band(network):
                return network
    return reach.random_network(rng)
