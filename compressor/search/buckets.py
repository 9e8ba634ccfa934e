"""The rows `M_l` of LayerNAS: the best prefixes in buckets of about equal cost. Knows no torch."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from compressor.search.reach import Reach
from compressor.space import Architecture


@dataclass(frozen=True, order=True)
class Member:
    """A kept prefix; sorts best first, earlier first among equals."""

    loss: float
    serial: int
    prefix: Architecture = field(compare=False)


class Members:
    """`M_l`: the best prefixes of one length in each bucket."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._serial = 0
        self._buckets: dict[object, list[Member]] = {}

    def add(self, bucket: object, prefix: Architecture, score: float) -> Architecture | None:
        """Keeps the prefix while it is among the best of its bucket; returns who has to leave."""
        row = self._buckets.setdefault(bucket, [])
        bisect.insort(row, Member(-score, self._serial, prefix))
        self._serial += 1
        gone = row[self._kept :]
        del row[self._kept :]
        return gone[0].prefix if gone else None

    def __iter__(self) -> Iterator[Member]:
        """Best first; the order depends on scores and arrival alone."""
        return iter(sorted(m for row in self._buckets.values() for m in row))


Key: TypeAlias = "int | tuple[float, ...]"


class Buckets:
    """Sorts prefixes into equal-width ranges between the cheapest and dearest reachable cost.

    The cost is that of the network with the undecided layers at the original.
    """

    def __init__(self, reach: Reach, count: int | None) -> None:
        """Takes the ranges from the limits; `count` None makes a bucket of each distinct cost."""
        self._reach = reach
        self._count = count
        depths = 0 if count is None else len(reach.sizes) + 1
        self._ranges = [self._range(depth) for depth in range(depths)]

    def key(self, prefix: Architecture) -> Key:
        """The bucket of a prefix among those of its length: a number, or its costs."""
        network = self._reach.filled(prefix)
        if self._count is None:
            return tuple(self._reach.cost(limit, network) for limit in self._reach.limits)
        low, high = self._ranges[len(prefix)]
        if high <= low:
            return 0
        share = (self._reach.cost(self._reach.key, network) - low) / (high - low)
        return min(self._count - 1, max(0, int(share * self._count)))

    def _range(self, depth: int) -> tuple[float, float]:
        """Cheapest and dearest reachable cost of prefixes of the given length.

        A table tells it for each length: a prefix can be `slack` above the limit, what the
        undecided layers can take away again. A measured cost gives one range for all lengths.
        """
        reach, key = self._reach, self._reach.key
        whole = reach.cost(key, reach.original)
        if not key.cost.monotone:
            return reach.cost(key, reach.smallest), whole
        slack = whole - key.cost(reach.original[:depth] + reach.smallest[depth:])
        return key.cost(reach.filled(reach.smallest[:depth])), min(whole, key.high + slack)
