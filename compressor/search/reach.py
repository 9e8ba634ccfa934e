"""What the limits leave to choose from: bounds, and completions of partial choices.

A *prefix* decides the first layers only. Bounds are taken from monotone costs, which are exact
tables; costs that are measured (noisy, not quite monotone, slow) are called on complete networks
alone, once for each. Knows no torch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np

from compressor.cost import Limit, is_exact
from compressor.search.moves import Obstacle
from compressor.search.witness import find_witness
from compressor.space import Architecture, canonical

_DRAWS = 200  # uniform draws tried before a network is grown in random order instead
_PROBES = 256  # uniform draws of which one must be in the band for such draws to be tried at all
_CHANGES = 8  # changed witnesses tried where nothing grows into the limits

Costs = dict[tuple[str, Architecture], float]
"""Unit and network to a measured cost."""

HiddenBy: TypeAlias = Sequence[Sequence[int]]
"""For each layer those that, all at their first option, leave it nothing to decide."""

Step = tuple[int, int]
"""A layer, and the option that it is raised to."""


class Reach:
    """Answers what can still be reached from a prefix.

    A network is *inside* where every cost keeps its limit, and *in the band* where besides some
    cost is at least `tightness` times the most that it may be, or has a least of its own.

    Attributes:
        sizes: number of options of each layer.
        limits: costs with their limits.
        hidden_by: as `SearchSpace.hidden_by`; empty where every layer always decides something.
        tables, untabled: those of monotone costs, and the others.
        names: of the layers, for messages; may be empty.
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
        measured: Costs | None = None,
        hidden_by: HiddenBy = (),
    ) -> None:
        """Finds a witness.

        Args:
            sizes: number of options of each layer.
            limits: costs with their limits.
            tightness: share of a limit from which on a network is in the band.
            names: of the layers, for messages.
            measured: where to keep measured costs; several of one kind can share it.
            hidden_by: see the attribute.

        Raises:
            InfeasibleError: no network within the limits was found.
        """
        self.sizes = tuple(sizes)
        self.limits = tuple(limits)
        self.tightness = tightness
        self.smallest: Architecture = (0,) * len(self.sizes)
        self.original: Architecture = tuple(n - 1 for n in self.sizes)
        self.names = tuple(names or ())
        self.hidden_by = hidden_by
        self.tables = [limit for limit in self.limits if limit.cost.monotone]
        self.untabled = [limit for limit in self.limits if not limit.cost.monotone]
        self._ranged = any(limit.low is not None for limit in self.limits)
        self._seen: Costs = {} if measured is None else measured
        self.exact = all(is_exact(limit) for limit in self.limits)
        self.witness = self.canonical(find_witness(self))
        self.holds_band = self.exact and self.in_band(self.witness)
        self.banded = self.holds_band and not self.untabled

    @property
    def key(self) -> Limit:
        """The limit whose cost sorts prefixes into buckets: the first with a table, if any."""
        return (self.tables or list(self.limits))[0]

    def canonical(self, architecture: Architecture) -> Architecture:
        """Of all that stand for one network the one to score; see `SearchSpace.canonical`."""
        return canonical(architecture, self.original, self.hidden_by)

    def cost(self, limit: Limit, architecture: Architecture) -> float:
        """Cost in the unit's base; a measured cost is asked for once for each network."""
        if limit.cost.monotone:
            return limit.cost(architecture)
        architecture = self.canonical(architecture)
        key = (limit.cost.unit, architecture)
        if key not in self._seen:
            self._seen[key] = limit.cost(architecture)
        return self._seen[key]

    def costs(self, architecture: Architecture) -> dict[str, float]:
        """All costs, unit to value."""
        return {limit.cost.unit: self.cost(limit, architecture) for limit in self.limits}

    def inside(self, architecture: Architecture) -> bool:
        """Whether the network keeps every limit; tables are asked before measurements."""
        return self.broken(architecture) is None

    def broken(self, architecture: Architecture) -> Obstacle | None:
        """On which side of the first limit that it does not keep a network is."""
        for limit in self.tables + self.untabled:
            cost = self.cost(limit, architecture)
            if not limit.holds(cost):
                return "above a limit" if cost > limit.high else "below a limit"
        return None

    def keeps(self, limits: Iterable[Limit], architecture: Architecture) -> bool:
        """Whether the network keeps these limits."""
        return all(limit.holds(self.cost(limit, architecture)) for limit in limits)

    def above(self, architecture: Architecture) -> bool:
        """Whether some cost is more than it may be; tables are asked before measurements."""
        limits = self.tables + self.untabled
        return any(self.cost(limit, architecture) > limit.high for limit in limits)

    def filling(self, architecture: Architecture) -> float:
        """Largest share that the network takes of a limit."""
        return max(_share(self.cost(limit, architecture), limit.high) for limit in self.limits)

    def in_band(self, architecture: Architecture) -> bool:
        """Whether the network is inside and uses what it may."""
        return self.inside(architecture) and self._fills(architecture)

    def _fills(self, architecture: Architecture) -> bool:
        """Whether a network inside uses what it may: ranges say it themselves."""
        return self._ranged or self.filling(architecture) >= self.tightness

    def reachable(self, prefix: Architecture) -> bool:
        """Whether some completion may still be an answer; costs no evaluation."""
        return self.obstacle(prefix) is None

    def obstacle(self, prefix: Architecture) -> Obstacle | None:
        """What no completion of a prefix gets past, if there is such a thing.

        Bounds, from tables alone: the cheapest completion must not be above, the most expensive
        one not below a limit, and where the band is known to hold a network, it must reach it.
        """
        cheapest = prefix + self.smallest[len(prefix) :]
        if _above(self.tables, cheapest):
            return "above a limit"
        if self._below(self.filled(prefix)):
            return "below a limit"
        short = self.banded and not self._fills(self.filled(prefix))
        return "outside the band" if short else None

    def _below(self, network: Architecture) -> bool:
        """Whether a table says that the network has less than it must."""
        return any(t.low is not None and t.cost(network) < t.low for t in self.tables)

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
            The network, or None where none was found; there may be one off the chain.
        """
        chain = self.even_steps(len(prefix)) if steps is None else steps
        base = prefix + self.smallest[len(prefix) :]

        def element(length: int) -> Architecture:
            return self.raised(chain[:length], base)

        top = _last(lambda n: not _above(self.tables, element(n)), len(chain))
        if top is None or self.untabled:
            return None if top is None else self._measured_fit(element, top)
        network = self._top_up(element(top), len(prefix))
        return network if self.inside(network) else None

    def _measured_fit(
        self, element: Callable[[int], Architecture], top: int
    ) -> Architecture | None:
        """An element of 0..top of a chain inside the limits; stops as soon as it is in the band.

        Each look is a measurement, so the next one is interpolated; every third one halves the
        rest, so that a curved cost cannot stall. The ends are looked at in any case: a measured
        cost may fall where the options rise.
        """
        found = element(0) if self.inside(element(0)) else None
        if self.inside(element(top)):
            return element(top)
        if found is None and (self.above(element(0)) or not self.above(element(top))):
            return None
        low, high, looks = 0, top, 0
        while high - low > 1 and not (found is not None and self.in_band(found)):
            below, above = self.filling(element(low)), self.filling(element(high))
            share = 0.5
            if looks % 3 < 2 and below < above < math.inf:
                share = ((1 + self.tightness) / 2 - below) / (above - below)
            middle = min(high - 1, max(low + 1, low + round(share * (high - low))))
            low, high = (low, middle) if self.above(element(middle)) else (middle, high)
            found = element(middle) if self.inside(element(middle)) else found
            looks += 1
        return found

    def measured(self, limit: Limit) -> dict[Architecture, float]:
        """What was measured so far for a limit without a table, in the order of measuring."""
        return {a: cost for (unit, a), cost in self._seen.items() if unit == limit.cost.unit}

    def draw(self, rng: random.Random) -> Architecture | None:
        """A random network inside: uniform over the band as far as some draws find it."""
        if self._uniform:
            for _ in range(_DRAWS):
                network = tuple(rng.randrange(size) for size in self.sizes)
                if self.in_band(network):
                    return self.canonical(network)
        grown = self.random_network(rng)
        grown = grown and self.canonical(grown)
        if grown is None or (grown == self.witness and not self.holds_band):
            return self._changed_witness(rng) or grown
        return grown

    def _changed_witness(self, rng: random.Random) -> Architecture | None:
        """A network inside that differs from the witness in a random part of the layers."""
        for _ in range(_CHANGES):
            share = rng.random()
            pairs = zip(self.witness, self.sizes, strict=True)
            network = tuple(rng.randrange(n) if rng.random() < share else o for o, n in pairs)
            if self.inside(network):
                return self.canonical(network)
        return None

    @cached_property
    def _uniform(self) -> bool:
        """Whether uniform draws have a chance; in networks of many layers all cost the same."""
        probes = np.random.default_rng(0).integers(0, self.sizes, (_PROBES, len(self.sizes)))
        return self.holds_band and any(self.in_band(tuple(row)) for row in probes.tolist())

    def random_network(self, rng: random.Random) -> Architecture | None:
        """A network inside, grown from the smallest in random order."""
        steps = [(i, 0) for i, n in enumerate(self.sizes) for _ in range(n - 1)]
        rng.shuffle(steps)
        heights = [0] * len(self.sizes)
        for place, (layer, _) in enumerate(steps):
            heights[layer] += 1
            steps[place] = (layer, heights[layer])
        return self.complete((), steps)

    def raised(self, steps: Iterable[Step], base: Architecture | None = None) -> Architecture:
        """A network, the smallest unless given, with some layers at other options."""
        options = list(self.smallest if base is None else base)
        for layer, option in steps:
            options[layer] = option
        return tuple(options)

    def even_steps(self, first: int = 0) -> list[Step]:
        """Steps of the undecided layers, ordered by the share of its options a layer has."""
        steps = [(i, o) for i in range(first, len(self.sizes)) for o in range(1, self.sizes[i])]
        return sorted(steps, key=lambda step: (step[1] / (self.sizes[step[0]] - 1), step[0]))

    def _top_up(self, network: Architecture, first: int) -> Architecture:
        """Raises single options of layers from `first` on until the network is in the band."""
        while not self.in_band(network):
            larger = [
                self.raised([(i, network[i] + 1)], network)
                for i in range(first, len(network))
                if network[i] < self.original[i]
            ]
            larger = [n for n in larger if not self.above(n)]
            if not larger:
                break
            network = max(larger, key=lambda n: (-self.shortfall(n), self.filling(n)))
        return network

    def shortfall(self, network: Architecture) -> float:
        """How much the costs lack of the least that they must have, in shares of it."""
        ranges = [(limit, limit.low) for limit in self.limits if limit.low]
        return sum(max(0.0, 1 - self.cost(limit, network) / low) for limit, low in ranges)


def _above(tables: Iterable[Limit], network: Architecture) -> bool:
    return any(table.cost(network) > table.high for table in tables)


def _share(cost: float, high: float) -> float:
    """Share of the limit; a limit of zero that is kept is full."""
    return cost / high if high > 0 else 1.0


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
