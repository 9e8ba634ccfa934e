"""From "half the MAdds" to what a tool must be asked for. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, TypeVar

from benchmarks.peers.protocol import Attempt, within

T = TypeVar("T")

_FINEST = 0.002  # share of the original between two requests that are worth telling apart


@dataclass(frozen=True)
class Reached(Generic[T]):
    """The closest network, which attempt made it, and all attempts in order."""

    product: T
    index: int
    attempts: tuple[Attempt, ...]


def reach(build: Callable[[float], tuple[T, float]], target: float, tries: int = 12) -> Reached[T]:
    """Bisects what is asked for until the MAdds are within the tolerance of the target.

    A tool that rounds widths or counts by its own rule gives other MAdds than it is asked for.

    Args:
        build: from a requested share of the MAdds, 0..1, to a network and the share it has by
            our count, which should not fall when the request grows.
        target: share to reach; also the first request.
        tries: most networks to build.

    Returns:
        The network that came closest. It may be outside the tolerance: some tools cannot do
        better.
    """
    low, high, requested = 0.0, 1.0, target
    attempts: list[Attempt] = []
    best: tuple[float, int, T] | None = None
    for index in range(tries):
        start = perf_counter()
        product, share = build(requested)
        attempts.append(Attempt(requested, share, perf_counter() - start))
        if best is None or abs(share - target) < best[0]:
            best = abs(share - target), index, product
        if within(share, target):
            break
        low, high = (low, requested) if share > target else (requested, high)
        if high - low < _FINEST:
            break  # the tool has no network in between
        requested = (low + high) / 2
    if best is None:
        raise ValueError(f"tries must be at least 1, but got {tries}")
    return Reached(best[2], best[1], tuple(attempts))
