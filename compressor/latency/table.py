"""Predicts the latency of every architecture from the measured times of its operators.

Which operators an architecture runs is learnt by `compressor.latency.splitting`, what each takes
alone is measured by `compressor.latency.parts`, and a few whole networks say how the sum of the
parts becomes the whole. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.deploy.slicing import Graph
from compressor.errors import ExportError, MeasureError
from compressor.latency.cache import Measured
from compressor.latency.fit import Correction, Floats, corrected
from compressor.latency.fused import Fuser
from compressor.latency.operators import Operator, operators, same_work
from compressor.latency.parts import COPIES, EMPTY, Clockwork, measured_parts, measured_shares
from compressor.latency.splitting import Part, operators_of, split
from compressor.progress import Event, Progress, silent
from compressor.space import Architecture, SearchSpace
from compressor.sum_table import Places, SumCost, SumData

KINDS = ("conv", "depthwise", "matmul", "layout", "other")
_STEP = 2.0**-40  # cells are whole numbers of such shares of the original's time
_FITTED = 14  # whole networks that the sum is fitted to
_DRAWN = 2000  # random networks that these are chosen from


class PartTimes:
    """Sums of the times of an architecture's parts, by kind, looked up in arrays."""

    def __init__(
        self, groups: Sequence[tuple[int, ...]], sizes: Sequence[int], times: Floats
    ) -> None:
        """Takes the layers of each group of parts, and the times of all cells by kind, `[K, C]`.

        Raises:
            ValueError: they contradict each other.
        """
        self.groups, self.sizes, self.times = tuple(groups), tuple(sizes), times
        self._places = Places(self.groups, sizes)
        if times.shape != (len(KINDS), self._places.count):
            raise ValueError(
                f"times of {len(KINDS)} kinds and {self._places.count} cells got {times.shape}"
            )

    @classmethod
    def of(cls, parts: Sequence[Part], measured: Measured, sizes: Sequence[int]) -> PartTimes:
        """The times of parts, in shares of the reference's.

        Calling a model takes time whatever is in it; of a part only what is beyond that counts.
        """
        called = measured.parts[EMPTY].ratio
        groups: dict[tuple[int, ...], Floats] = {}
        for part in parts:
            times = np.zeros((len(KINDS), *(sizes[i] for i in part.layers)))
            for cell, operator in part.cells.items():
                if operator is not None and operator.form.node:
                    alone = measured.parts[operator.signature].ratio
                    times[(KINDS.index(operator.form.kind), *cell)] = (
                        max(0.0, alone - called) / COPIES
                    )
            groups[part.layers] = groups.get(part.layers, 0.0) + times
        cells = [times.reshape(len(KINDS), -1) for times in groups.values()]
        return cls(tuple(groups), sizes, np.concatenate(cells, axis=1))

    def sums(self, architectures: NDArray[np.int64]) -> Floats:
        """Times of the parts of networks `[N, L]` by kind, `[N, K]`."""
        found: Floats = self.times[:, self._places.of(architectures)].sum(axis=2).T
        return found

    def cost(self, correction: Correction) -> SumCost:
        """The corrected times of networks."""
        cells = np.rint(np.array(correction.scales) @ self.times / _STEP).astype(np.int64)
        constant = round(correction.constant / _STEP)
        steps = tuple(cells.tolist())
        return SumCost(SumData("latency", self.sizes, self.groups, steps, constant, _STEP))


@dataclass(frozen=True)
class TableData:
    """A `LatencyTable` as plain values, for `compressor.plain`.

    Attributes:
        sizes: number of options of each layer.
        groups: the layers that groups of parts depend on.
        times: for each kind the times of all cells.
        networks: architectures that were measured as a whole.
        shares: what they took.
    """

    sizes: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    times: tuple[tuple[float, ...], ...]
    networks: tuple[Architecture, ...]
    shares: tuple[float, ...]


class LatencyTable:
    """What every architecture takes on one machine, as a share of the original's time.

    Attributes:
        shares: what whole networks were measured to take.
        correction: how the sums of their parts became that, and how far off it is.
        cost: the corrected sums, in shares of the original.
    """

    def __init__(self, times: PartTimes, shares: Mapping[Architecture, float]) -> None:
        """Fits the sums of the parts to measured networks.

        Raises:
            MeasureError: they are too few.
        """
        self._times, self.shares = times, dict(shares)
        networks = np.array(list(self.shares), dtype=np.int64)
        measured = np.array(list(self.shares.values()))
        self.correction = corrected(times.sums(networks), measured)
        self.cost = times.cost(self.correction)

    def __call__(self, architecture: Architecture) -> float:
        """Predicted share; the architecture must belong to the space."""
        return float(self.many(np.array([architecture], dtype=np.int64))[0])

    def many(self, architectures: NDArray[np.int64]) -> NDArray[np.float64]:
        """Predicted shares of networks `[N, L]`, `[N]`."""
        return self.cost.many(architectures)

    @property
    def data(self) -> TableData:
        """The table as plain values."""
        times = tuple(tuple(row) for row in self._times.times.tolist())
        return TableData(
            self._times.sizes, self._times.groups, times,
            tuple(self.shares), tuple(self.shares.values()),
        )  # fmt: skip

    @classmethod
    def of(cls, data: TableData) -> LatencyTable:
        """Inverse of `data`.

        Raises:
            ValueError: the values contradict each other.
        """
        times = PartTimes(data.groups, data.sizes, np.array(data.times, dtype=np.float64))
        if not all(len(network) == len(data.sizes) for network in data.networks):
            raise ValueError(f"networks have {len(data.sizes)} layers, but got {data.networks}")
        try:
            return cls(times, dict(zip(data.networks, data.shares, strict=True)))
        except (MeasureError, IndexError) as error:
            raise ValueError(str(error)) from error

    def learnt(self, shares: Mapping[Architecture, float]) -> LatencyTable:
        """The same parts, fitted to more networks as well."""
        return LatencyTable(self._times, self.shares | dict(shares))


def build_table(
    graph: Graph,
    space: SearchSpace,
    clockwork: Clockwork,
    fuser: Fuser,
    *,
    progress: Progress = silent,
    seed: int = 0,
) -> LatencyTable:
    """Measures what is needed to predict the latency of every architecture.

    Args:
        graph: the exported base network.
        space: how it may be cut.
        clockwork: with what parts are measured.
        fuser: what the runtime that measures makes of a model.
        progress: told after each step.
        seed: which networks are looked at and measured.

    Raises:
        ExportError: the network cannot be split into operators that can be timed alone.
        MeasureError: ONNX Runtime cannot run a slice or a part of one.
        RunError: the file of measured parts cannot be read or written.
    """
    if not space.layers:
        raise ExportError("a latency table is over search layers, but this space has none")

    def look(architecture: Architecture) -> Sequence[Operator]:
        progress(Event("latency table", 0, None, "asking the runtime what it runs"))
        return operators(fuser(graph.slice(space, architecture)))

    parts = split(space.sizes, look, seed)
    every = [o for part in parts for o in part.cells.values() if o is not None]
    measured = measured_parts(every, clockwork, progress)
    times = PartTimes.of(parts, measured, space.sizes)

    def total(networks: NDArray[np.int64]) -> Floats:
        sums: Floats = times.sums(networks).sum(axis=1)
        return sums

    named = {
        a: (same_work(operators_of(parts, a)), graph.slice(space, a))
        for a in spread_networks(total, space.sizes, _FITTED, seed)
    }
    base = named.pop(space.original)
    shares = measured_shares(dict(named.values()), base, measured, clockwork, progress)
    whole = {a: shares[name] for a, (name, _) in named.items()}
    return LatencyTable(times, whole | {space.original: 1.0})


def spread_networks(
    cost: Callable[[NDArray[np.int64]], Floats], sizes: Sequence[int], count: int, seed: int
) -> list[Architecture]:
    """Different networks, about evenly spread over what networks cost.

    The first two are the smallest and the original.
    """
    ends = np.array([[0] * len(sizes), [size - 1 for size in sizes]], dtype=np.int64)
    low, high = cost(ends)
    between = networks_at(cost, sizes, np.linspace(low, high, count)[1:-1], seed)
    return list(dict.fromkeys([*map(tuple, ends.tolist()), *between]))


def networks_at(
    cost: Callable[[NDArray[np.int64]], Floats],
    sizes: Sequence[int],
    aims: Sequence[float] | Floats,
    seed: int,
) -> list[Architecture]:
    """Different random networks, for each aim one that costs about as much; neither of the ends."""
    drawn = _drawn(sizes, np.random.default_rng(seed))
    costs, ends = cost(drawn), {tuple(row) for row in drawn[:2].tolist()}
    found = dict.fromkeys(ends)
    for aim in aims:
        nearest = (tuple(drawn[i].tolist()) for i in np.argsort(np.abs(costs - aim)))
        network = next((a for a in nearest if a not in found), None)
        if network is not None:
            found[network] = None
    return [a for a in found if a not in ends]


def _drawn(sizes: Sequence[int], rng: np.random.Generator) -> NDArray[np.int64]:
    """Networks `[N, L]`: the smallest, the original, and random ones from small to large."""
    options = np.array(sizes)
    level, noise = rng.uniform(-0.3, 1.3, (_DRAWN, 1)), rng.uniform(-0.5, 0.5, (_DRAWN, len(sizes)))
    shares = np.clip(level + noise, 0.0, 1.0)
    shares[0], shares[1] = 0.0, 1.0
    rounded: NDArray[np.int64] = np.rint(shares * (options - 1)).astype(np.int64)
    return rounded
