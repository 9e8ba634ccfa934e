"""One network that keeps every limit, or the error that says what comes nearest.

Knows no torch. What tables say is looked up; measured costs are slow and need not be monotone, so
they are asked of few networks, but in small spaces of all.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from compressor.budget import format_cost
from compressor.cost import Limit
from compressor.errors import InfeasibleError
from compressor.space import Architecture

if TYPE_CHECKING:
    from compressor.search.reach import Reach

_ENUMERATED = 4096  # spaces of up to so many networks are looked through
_MEASURED = 256  # the same where each look is a measurement
_ATTEMPTS = 64  # random fillings tried in larger spaces
_CHAIN = 64  # steps of the even filling that are measured
_WALK, _MEASURED_WALK = 4096, 64  # changes of the nearest network before a limit is out of reach


def find_witness(reach: Reach) -> Architecture:
    """A network inside the limits, in the band wherever one was found there.

    Raises:
        InfeasibleError: none was found; in small spaces there is none.
    """
    _check_ends(reach)
    even = reach.complete(())
    if even is not None and (not reach.exact or reach.in_band(even)):
        return even
    if reach.exact:
        found = next((n for n in _fillings(reach) if reach.in_band(n)), even)
        if found is not None:
            return found
    seen: dict[Architecture, None] = {}
    for network in _attempts(reach):
        if reach.inside(network):
            return network
        seen[network] = None
    nearest = _Walk(reach, list(seen))
    found = nearest.inside()
    if found is not None:
        return found
    raise _infeasible(reach, nearest.seen)


def _check_ends(reach: Reach) -> None:
    """The cheapest network must keep what tables allow at most, the original what they ask for."""
    for end, wrong in ((reach.smallest, _is_above), (reach.original, _is_below)):
        if any(wrong(limit, reach.cost(limit, end)) for limit in reach.tables):
            raise _infeasible(reach, [end])


def _fillings(reach: Reach) -> Iterator[Architecture]:
    """Networks to look through for one in the band: all of a small space, else random ones."""
    if math.prod(reach.sizes) <= _ENUMERATED:
        yield from itertools.product(*map(range, reach.sizes))
        return
    rng = random.Random(0)  # noqa: S311
    found = (reach.random_network(rng) for _ in range(_ATTEMPTS))
    yield from (n for n in found if n is not None)


def _attempts(reach: Reach) -> Iterator[Architecture]:
    """Networks to try before giving up: the even filling, then, in small spaces, all.

    Where costs are measured, only those that keep the tables.
    """
    chain = reach.even_steps()
    steps = len(chain) if reach.exact else min(len(chain), _CHAIN)
    found = (reach.raised(chain[:n]) for n in range(steps + 1))
    small = math.prod(reach.sizes) <= (_ENUMERATED if reach.exact else _MEASURED)
    rest = itertools.product(*map(range, reach.sizes)) if small else iter(())
    for network in itertools.chain(found, rest):
        if reach.exact or reach.keeps(reach.tables, network):
            yield network


class _Walk:
    """Random small changes of the network that comes nearest to the limits."""

    def __init__(self, reach: Reach, seen: list[Architecture]) -> None:
        self.seen = seen or [reach.smallest, reach.original]
        self._reach = reach
        self._steps = _WALK if reach.exact else _MEASURED_WALK
        if reach.smallest == reach.original:  # nothing to change
            self._steps = 0

    def inside(self) -> Architecture | None:
        """The first network inside; None where so many changes did not find one."""
        rng = random.Random(0)  # noqa: S311
        here = min(self.seen, key=self._miss)
        least = self._miss(here)
        for _ in range(self._steps):
            network = self._changed(here, rng)
            miss = self._miss(network)
            if miss == (0.0, 0.0):
                return network
            if miss <= least:
                here, least = network, miss
                self.seen.append(network)
        return None

    def _changed(self, network: Architecture, rng: random.Random) -> Architecture:
        options = list(network)
        for layer in rng.choices(range(len(options)), k=rng.randint(1, 3)):
            step = rng.choice((-1, 1))
            options[layer] = min(self._reach.original[layer], max(0, options[layer] + step))
        return tuple(options)

    def _miss(self, network: Architecture) -> tuple[float, float]:
        """By how much the network breaks tables; measured limits count only where it keeps them."""
        tables = self._sum(self._reach.tables, network)
        return tables, math.inf if tables else self._sum(self._reach.untabled, network)

    def _sum(self, limits: Sequence[Limit], network: Architecture) -> float:
        return sum(_miss(limit, self._reach.cost(limit, network)) for limit in limits)


def _is_above(limit: Limit, cost: float) -> bool:
    return cost > limit.high


def _is_below(limit: Limit, cost: float) -> bool:
    return limit.low is not None and cost < limit.low


def _miss(limit: Limit, cost: float) -> float:
    """By how much a cost breaks the limit, in shares of it; 0 where it keeps it."""
    end = limit.high if _is_above(limit, cost) else limit.low
    if limit.holds(cost) or end is None:
        return 0.0
    return abs(cost - end) / end if end > 0 else 1.0 + abs(cost - end)


def _infeasible(reach: Reach, seen: Sequence[Architecture]) -> InfeasibleError:
    """Names the limit that the networks miss by most, and what they have of it."""
    kept = [n for n in seen if reach.keeps(reach.tables, n)]
    near = kept or seen
    limits = reach.untabled if kept else reach.tables

    def missed(limit: Limit) -> tuple[float, bool]:
        return min(_miss(limit, reach.cost(limit, n)) for n in near), limit.low is not None

    worst = max(limits, key=missed)
    others = [limit for limit in reach.tables if limit is not worst]
    near = [n for n in near if reach.keeps(others, n)] or near
    costs = [reach.cost(worst, n) for n in near]
    few = ", ".join(map(repr, reach.names[:3])) + (", …" if len(reach.names) > 3 else "")
    layers = f"{len(reach.sizes)} search layers" + (f" ({few})" if few else "")
    return InfeasibleError(
        _of_range(worst, worst.low, costs, layers)
        if worst.low is not None
        else _of_high(worst, min(costs), layers)
    )


def _of_high(limit: Limit, cheapest: float, layers: str) -> str:
    unit = limit.cost.unit
    high, found = _texts(unit, [limit.high, cheapest])
    return (
        f"a limit must not be below what the search layers can reach, but {unit} is limited to "
        f"{high} and the cheapest network found has {found}, with {layers} to choose from; raise "
        f"the limit of {unit} to {found} or more, or let more layers shrink"
    )


def _of_range(limit: Limit, low: float, costs: Iterable[float], layers: str) -> str:
    unit = limit.cost.unit
    values = sorted(costs)
    nearest = [v for v in values if v < low][-1:] + [v for v in values if v > limit.high][:1]
    ends = _texts(unit, [low, limit.high, *nearest])
    found = " and ".join(ends[2:]) or "none that keeps the other limits"
    return (
        f"a range must hold a network that keeps the other limits, but {unit} is to be within "
        f"{ends[0]} and {ends[1]} and the nearest found has {found}, with {layers} to choose "
        f"from; widen the range of {unit}, or let more layers shrink"
    )


def _texts(unit: str, values: Sequence[float]) -> list[str]:
    """Values for people; in full where two would look the same."""
    shown = [format_cost(unit, value) for value in values]
    return shown if len(set(shown)) == len(set(values)) else [repr(v) for v in values]
