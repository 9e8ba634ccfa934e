"""The searches that `benchmarks.search_quality` compares, each on one band of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from benchmarks.tables import TIGHTNESS, NoisyScore, Table
from compressor.cost import Limit
from compressor.search.baselines import random_search, regularised_evolution
from compressor.search.layer_nas import SearchSettings, layer_nas
from compressor.search.settings import Strategy
from compressor.space import Architecture

Method: TypeAlias = Callable[[Table, float, Sequence[int], int], list[Architecture]]
"""Table, share of the largest cost, numbers of evaluations, seed; the network found with each."""


def _planned(
    strategy: Strategy,
    batch: int,
    table: Table,
    share: float,
    counts: Sequence[int],
    seed: int,
) -> list[Architecture]:
    """LayerNAS plans with the number of evaluations, so each number is a search of its own."""
    settings = SearchSettings(strategy, tightness=TIGHTNESS, deterministic=False, batch=batch)
    searches = (
        layer_nas(**_problem(table, share, seed), settings=settings, evaluations=count)
        for count in counts
    )
    return [found.best.architecture for found in searches]


def _baseline(
    search: Callable[..., Any], table: Table, share: float, counts: Sequence[int], seed: int
) -> list[Architecture]:
    """A search that does not know when it will be stopped: the shorter ones are its beginning."""
    history: list[tuple[Architecture, float]] = []
    search(
        **_problem(table, share, seed),
        settings=SearchSettings(tightness=TIGHTNESS, deterministic=False),
        evaluations=max(counts),
        on_outcome=lambda network, outcome: history.append((network, outcome.score)),
    )
    return _best(history, counts)


def _rival(
    name: str, table: Table, share: float, counts: Sequence[int], seed: int
) -> list[Architecture]:
    from benchmarks.rivals import RIVALS  # noqa: PLC0415 - the other methods need no Optuna

    return _best(RIVALS[name](table, share, max(counts), seed), counts)


def _problem(table: Table, share: float, seed: int) -> dict[str, Any]:
    return {
        "sizes": table.keys.sizes,
        "limits": [Limit(table.cost, table.high(share))],
        "score": NoisyScore(table, seed),
        "seed": seed,
    }


def _best(
    history: Sequence[tuple[Architecture, float]], counts: Sequence[int]
) -> list[Architecture]:
    """The network with the best score after each number of evaluations."""
    return [max(history[:count], key=lambda entry: entry[1])[0] for count in counts]


METHODS: Mapping[str, Method] = {
    "random": partial(_baseline, random_search),
    "guided": partial(_planned, "guided", 1),
    "guided-4": partial(_planned, "guided", 4),  # four networks asked for at once
    "evolution": partial(_baseline, regularised_evolution),
    "tpe": partial(_rival, "tpe"),
    "nsga2": partial(_rival, "nsga2"),
    "published": partial(_planned, "published", 1),
}
