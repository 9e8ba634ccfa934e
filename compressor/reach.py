"""What the limits leave to choose from: bounds, and completions of partial choices.

A *prefix* decides the first layers only. Bounds are taken from monotone costs, which are exact
tables; costs that are measured (noisy, not quite monotone, slow) are called on complete networks
alone, once for each. Knows no torch.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from compressor.budget import format_cost
from compressor.cost import BatchCost, Limit
from compressor.errors import InfeasibleError
from compressor.moves import Obstacle
from compressor.space import Architecture

_ENUMERATED = 4096  # spaces of up to so many networks are looked through for a network in the band
_ATTEMPTS = 64  # random fillings tried in larger spaces
_DRAWS = 200  # uniform draws tried before a network is grown in random order instead
_MEASURED = 256  # networks measured before a measured limit counts as out of reach

Step = tuple[int, int]
"""A layer, and the option that it is raised to."""


class Reach:
    """Answers what can still be reached from a prefix.

    A network is *inside* where every cost is at most its limit, and *in the band* where besides
    some cost is at least `tightness` times its limit.

    Attributes:
        sizes: number of options of each layer.
        limits: costs with their limits.
        smallest, original: the networks of first and of last options.
        witness: a network inside, in the band wherever one was found there.
        exact: whether all costs are exact and cheap: monotone ones, or asked of many at once.
        holds_band: whether the costs are exact and the witness proves that the band holds a
            network.
        banded: whether, besides, prefixes that cannot fill the band may be dropped, because all
            costs are monotone.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        limits: Sequence[Limit],
        tightness: float,
        names: Sequence[str] | None = None,
    ) -> None:
        """Finds a witness.

        Raises:
            InfeasibleError: no network within the limits was found.
        """
        self.sizes = tuple(sizes)
        self.limits = tuple(limits)
        self.tightness = tightness
        self.smallest: Architecture = (0,) * len(self.sizes)
        self.original: Architecture = tuple(n - 1 for n in self.sizes)
        self._names = tuple(names or ())
        self._tables = [limit for limit in self.limits if limit.cost.monotone]
        self._measured = [limit for limit in self.limits if not limit.cost.monotone]
        self._seen: dict[tuple[str, Architecture], float] = {}
        self._require(self._tables, [self.smallest])
        self.exact = all(is_exact(limit) for limit in self.limits)
        self.witness = self._find_witness()
        self.holds_band = self.exact and self.in_band(self.witness)
        self.banded = self.holds_band and not self._measured

    @property
    def key(self) -> Limit:
        """The limit whose cost sorts prefixes into buckets: the first with a table, if any."""
        return (self._tables or list(self.limits))[0]

    def cost(self, limit: Limit, architecture: Architecture) -> float:
        """Cost in the unit's base; a measured cost is asked for once for each network."""
        if limit.cost.monotone:
            return limit.cost(architecture)
        key = (limit.cost.unit, architecture)
        if key not in self._seen:
            self._seen[key] = limit.cost(architecture)
        return self._seen[key]

    def costs(self, architecture: Architecture) -> dict[str, float]:
        """All costs, unit to value."""
        return {limit.cost.unit: self.cost(limit, architecture) for limit in self.limits}

    def inside(self, architecture: Architecture) -> bool:
        """Whether the network keeps every limit; tables are asked before measurements."""
        return all(
            self.cost(limit, architecture) <= limit.high for limit in self._tables + self._measured
        )

    def filling(self, architecture: Architecture) -> float:
        """Largest share that the network takes of a limit."""
        return max(_share(self.cost(limit, architecture), limit.high) for limit in self.limits)

    def in_band(self, architecture: Architecture) -> bool:
        """Whether the network is inside and uses what it may."""
        return self.inside(architecture) and self.filling(architecture) >= self.tightness

    def reachable(self, prefix: Architecture) -> bool:
        """Whether some completion may still be an answer; costs no evaluation."""
        return self.obstacle(prefix) is None

    def obstacle(self, prefix: Architecture) -> Obstacle | None:
        """What no completion of a prefix gets past, if there is such a thing.

        Bounds: the cheapest completion must keep every table's limit, and where the band is known
        to hold a network, the most expensive completion must reach it.
        """
        cheapest = prefix + self.smallest[len(prefix) :]
        if not _keeps(self._tables, cheapest):
            return "above a limit"
        short = self.banded and self.filling(self.filled(prefix)) < self.tightness
        return "outside the band" if short else None

    def filled(self, prefix: Architecture) -> Architecture:
        """The prefix with the undecided layers at the original."""
        return prefix + self.original[len(prefix) :]

    def complete(
        self, prefix: Architecture, steps: Sequence[Step] | None = None
    ) -> Architecture | None:
        """A network inside that extends the prefix, as large as an even filling allows.

        The undecided layers rise from the first to the last option along a chain of single steps
        (evenly in relative terms unless `steps` says otherwise). A search along the chain finds
        the last network that is inside; it is checked itself, so measured costs need not be
        monotone. With tables alone, single options are then raised up to the band.

        Returns:
            The network, or None where the chain's cheapest one is above a limit.
        """
        chain = self._even_steps(len(prefix)) if steps is None else steps
        base = prefix + self.smallest[len(prefix) :]

        def element(length: int) -> Architecture:
            return _raised(base, chain[:length])

        top = _last(lambda n: _keeps(self._tables, element(n)), len(chain))
        if top is None or not self._measured:
            return None if top is None else self._top_up(element(top), len(prefix))
        return self._measured_fit(element, top)

    def _measured_fit(
        self, element: Callable[[int], Architecture], top: int
    ) -> Architecture | None:
        """An element of 0..top of a chain inside the limits; stops as soon as it is in the band.

        Each look is a measurement, so the next one is interpolated; every third one halves the
        rest, so that a curved cost cannot stall.
        """
        if not self.inside(element(0)) or self.inside(element(top)):
            return element(top) if self.inside(element(0)) else None
        low, high, looks = 0, top, 0
        while high - low > 1 and not self.in_band(element(low)):
            below, above = self.filling(element(low)), self.filling(element(high))
            share = 0.5
            if looks % 3 < 2 and below < above < math.inf:
                share = ((1 + self.tightness) / 2 - below) / (above - below)
            middle = min(high - 1, max(low + 1, low + round(share * (high - low))))
            low, high = (middle, high) if self.inside(element(middle)) else (low, middle)
            looks += 1
        return element(low)

    def measured(self, limit: Limit) -> dict[Architecture, float]:
        """What was measured so far for a limit without a table, in the order of measuring."""
        return {a: cost for (unit, a), cost in self._seen.items() if unit == limit.cost.unit}

    def draw(self, rng: random.Random) -> Architecture | None:
        """A random network inside: uniform over the band as far as some draws find it."""
        if self.holds_band:
            for _ in range(_DRAWS):
                network = tuple(rng.randrange(size) for size in self.sizes)
                if self.in_band(network):
                    return network
        return self.random_network(rng)

    def random_network(self, rng: random.Random) -> Architecture | None:
        """A network inside, grown from the smallest in random order."""
        steps = [(i, 0) for i, n in enumerate(self.sizes) for _ in range(n - 1)]
        rng.shuffle(steps)
        heights = [0] * len(self.sizes)
        for place, (layer, _) in enumerate(steps):
            heights[layer] += 1
            steps[place] = (layer, heights[layer])
        return self.complete((), steps)

    def _even_steps(self, first: int) -> list[Step]:
        """Steps of the undecided layers, ordered by the share of its options a layer has."""
        steps = [(i, o) for i in range(first, len(self.sizes)) for o in range(1, self.sizes[i])]
        return sorted(steps, key=lambda step: (step[1] / (self.sizes[step[0]] - 1), step[0]))

    def _top_up(self, network: Architecture, first: int) -> Architecture:
        """Raises single options of layers from `first` on until the network is in the band."""
        while self.filling(network) < self.tightness:
            larger = [
                _raised(network, [(i, network[i] + 1)])
                for i in range(first, len(network))
                if network[i] < self.original[i]
            ]
            larger = [n for n in larger if self.inside(n)]
            if not larger:
                break
            network = max(larger, key=self.filling)
        return network

    def _find_witness(self) -> Architecture:
        even = self.complete(())
        if even is None:
            return self._require(self._measured, self._cheap_networks())
        if not self.exact or self.in_band(even):
            return even
        others: Iterable[Architecture | None]
        if math.prod(self.sizes) <= _ENUMERATED:
            others = itertools.product(*map(range, self.sizes))
        else:
            rng = random.Random(0)  # noqa: S311
            others = (self.random_network(rng) for _ in range(_ATTEMPTS))
        return next((n for n in others if n is not None and self.in_band(n)), even)

    def _cheap_networks(self) -> Iterator[Architecture]:
        """Networks to measure before giving up: the even chain, then, in small spaces, all."""
        chain = self._even_steps(0)
        found = (_raised(self.smallest, chain[:n]) for n in range(min(len(chain), 64) + 1))
        small = math.prod(self.sizes) <= _MEASURED
        rest = itertools.product(*map(range, self.sizes)) if small else iter(())
        for network in itertools.chain(found, rest):
            if _keeps(self._tables, network):
                yield network

    def _require(self, limits: Sequence[Limit], networks: Iterable[Architecture]) -> Architecture:
        """The first network that keeps the given limits."""
        seen: list[Architecture] = []
        for network in networks:
            if all(self.cost(limit, network) <= limit.high for limit in limits):
                return network
            seen.append(network)
        worst = max(limits, key=lambda t: min(_share(self.cost(t, n), t.high) for n in seen))
        raise self._infeasible(worst, min(self.cost(worst, n) for n in seen))

    def _infeasible(self, limit: Limit, cheapest: float) -> InfeasibleError:
        unit = limit.cost.unit
        shown = [format_cost(unit, value) for value in (limit.high, cheapest)]
        if shown[0] == shown[1]:
            shown = [repr(limit.high), repr(cheapest)]
        few = ", ".join(map(repr, self._names[:3])) + (", …" if len(self._names) > 3 else "")
        layers = f"{len(self.sizes)} search layers" + (f" ({few})" if few else "")
        return InfeasibleError(
            f"a limit must not be below what the search layers can reach, but {unit} is limited to "
            f"{shown[0]} and the cheapest network found has {shown[1]}, with {layers} to choose "
            f"from; raise the limit of {unit} to {shown[1]} or more, or let more layers shrink"
        )


def is_exact(limit: Limit) -> bool:
    """Whether a cost is a table that answers in microseconds, not a measurement."""
    return limit.cost.monotone or isinstance(limit.cost, BatchCost)


def _keeps(tables: Iterable[Limit], network: Architecture) -> bool:
    return all(table.cost(network) <= table.high for table in tables)


def _share(cost: float, high: float) -> float:
    """Share of the limit; a limit of zero that is kept is full."""
    return cost / high if high > 0 else 1.0


def _raised(network: Architecture, steps: Iterable[Step]) -> Architecture:
    options = list(network)
    for layer, option in steps:
        options[layer] = option
    return tuple(options)


def _last(test: Callable[[int], bool], high: int) -> int | None:
    """The last number in 0..high that passes, by bisection; None where 0 does not pass."""
    if not test(0):
        return None
    if test(high):
        return high
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if test(middle) else (low, middle)
    return low
