"""Visits of the published strategy, made of what it tells. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compressor.search.moves import Dropped, Judged, Move, Visited
from compressor.space import Architecture
from compressor.trace.trace import Fate, Source, Standing, Tried, Visit

_Row = dict[Architecture, tuple[Any, Tried]]
"""Members of the row `M_l`, with their buckets, in the order of their arrival."""


class Visits:
    """What the visits so far did, and the rows as they stand.

    Attributes:
        origin: where networks come from that are scored now; None in other strategies.
    """

    def __init__(self) -> None:
        self.origin: tuple[Source, int | None] | None = None
        self._visits: list[Visit] = []  # before this one
        self._now: tuple[int, int] | None = None  # round and layer of this visit
        self._tried: list[Tried] = []  # in this visit
        self._first = 0  # number of the first evaluation of this visit
        self._rows: dict[int, _Row] = {}

    def take(self, move: Move, numbers: Mapping[Architecture, int]) -> None:
        """Takes in a move of the published strategy.

        Args:
            move: what the search told.
            numbers: of the evaluations of all networks scored so far.
        """
        if isinstance(move, Visited):
            self._first = len(numbers)
            self._turn(move.layer)
        elif isinstance(move, Dropped):
            self._tried.append(Tried(move.prefix, move.obstacle))
        elif isinstance(move, Judged):
            self._judged(move, numbers.get(move.network))

    def done(self) -> tuple[Visit, ...]:
        """All visits, the last one as far as it came."""
        if self._now is None:
            return tuple(self._visits)
        row = _standing(self._rows.get(self._now[1], {}))
        return (*self._visits, Visit(*self._now, tuple(self._tried), row))

    def _turn(self, layer: int | None) -> None:
        last = -1 if self._now is None else self._now[0]
        self._visits, self._tried = list(self.done()), []
        self._now = None if layer is None else (last + (layer == 0), layer)
        self.origin = ("set aside", None) if layer is None else ("layer", len(self._visits))

    def _judged(self, move: Judged, number: int | None) -> None:
        known = number is not None and number < self._first
        bucket = move.bucket if isinstance(move.bucket, int) else None
        tried = Tried(
            move.prefix, _fate(move, number), move.score, move.cost, bucket, number, known
        )
        if tried.fate == "kept":
            row = self._rows.setdefault(len(move.prefix) - 1, {})
            row[move.prefix] = move.bucket, tried
            if move.gone is not None:
                del row[move.gone]
                tried = replace(tried, pushed_out=move.gone)
        self._tried.append(tried)


def _fate(move: Judged, number: int | None) -> Fate:
    if move.score is None:
        return "not scored" if number is None else "failed"
    return "beaten" if move.gone == move.prefix else "kept"


def _standing(row: _Row) -> tuple[Standing, ...]:
    """The members by bucket, cheapest first, the best of each first."""
    buckets: dict[Any, list[Tried]] = {}
    for key, tried in row.values():
        buckets.setdefault(key, []).append(tried)
    found = []
    for _, members in sorted(buckets.items()):
        best = sorted(members, key=lambda t: -(t.score or 0.0))
        scores = tuple(t.score for t in best if t.score is not None)
        costs = [t.cost for t in best if t.cost is not None]
        found.append(Standing(best[0].bucket, min(costs), tuple(t.prefix for t in best), scores))
    return tuple(found)
