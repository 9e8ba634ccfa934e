"""What a search finds out, as plain values. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from compressor.space import Architecture


@dataclass(frozen=True)
class Outcome:
    """One evaluation.

    Attributes:
        score: higher is better; None where the network could not be scored.
        reason: why there is no score; empty where there is one.
        seconds: wall-clock time of the evaluation.
        repeat: how often the network had been scored before; 0 unless scores are noisy.
    """

    score: float | None
    reason: str
    seconds: float
    repeat: int = 0


@dataclass(frozen=True)
class Candidate:
    """A scored network: unit to cost in the unit's base, and its score (higher is better).

    Where it was scored several times, the score is the mean.
    """

    architecture: Architecture
    costs: Mapping[str, float]
    score: float


@dataclass(frozen=True)
class SearchResult:
    """What a search hands back.

    Attributes:
        best: the best network within every limit.
        frontier: the scored networks that no other one beats in both score and cost of the first
            limit, sorted by that cost; some may lie above a limit.
        evaluations: evaluations that were made or failed, those known beforehand included.
        failed: networks without a score, with the reason.
        scored: all scored networks in the order of their evaluation.
    """

    best: Candidate
    frontier: tuple[Candidate, ...]
    evaluations: int
    failed: tuple[tuple[Architecture, str], ...]
    scored: tuple[Candidate, ...]


Judge: TypeAlias = Callable[[Architecture], Outcome]
Executor: TypeAlias = Callable[[Judge, Iterable[Architecture]], Iterable[Outcome]]
"""Like the built-in `map`: yields the outcomes in the order of the architectures."""


def by_network(
    evaluations: Iterable[tuple[Architecture, Outcome]],
) -> dict[Architecture, tuple[Outcome, ...]]:
    """Outcomes of each network, in order."""
    found: dict[Architecture, tuple[Outcome, ...]] = {}
    for architecture, outcome in evaluations:
        found[architecture] = (*found.get(architecture, ()), outcome)
    return found
