"""Latency as a cost that is predicted in microseconds, and measured where it matters.

Knows no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compressor.device.measure import Settings
from compressor.device.timing import Latency
from compressor.latency.cost import LatencyCost
from compressor.latency.table import LatencyTable, networks_at
from compressor.space import Architecture
from compressor.sum_table import SumCost

_DRAWN = 1000  # random networks of which the fastest is made faster


class PredictedLatency:
    """Milliseconds of one call as the table predicts them; a `compressor.cost.BatchCost`.

    Attributes:
        table: what predicts.
        cost: the same predictions in milliseconds, fully described by plain values.
        whole: what measures whole networks.
    """

    unit = "latency"
    monotone = False  # fewer channels can be slower: kernels of the runtime work in blocks

    def __init__(
        self, table: LatencyTable, whole: LatencyCost, original_ms: float, pace: float = 1.0
    ) -> None:
        """Predicts shares of what the original takes, `original_ms` milliseconds.

        All are multiplied by `pace`: with what else runs on a machine, the time of small networks
        beside that of large ones changes, and a table may be of another day.
        """
        self.table, self.whole, self._ms = table, whole, original_ms
        self.cost = SumCost(table.cost.data.scaled(original_ms * pace))

    def __call__(self, architecture: Architecture) -> float:
        """Predicted milliseconds; the architecture must belong to the space."""
        return self.cost(architecture)

    def many(self, architectures: NDArray[np.int64]) -> NDArray[np.float64]:
        """Predicted milliseconds of networks `[N, L]`, `[N]`; the same as one by one."""
        return self.cost.many(architectures)

    def measured(self, architecture: Architecture, settings: Settings) -> Latency:
        """The whole network, measured now in turns with the original; errors as when it is called.

        Milliseconds are shares of what the original is said to take.
        """
        return self.whole.measured(architecture, settings)

    def learnt(self, measured: Mapping[Architecture, float]) -> PredictedLatency:
        """Predictions corrected by milliseconds of whole networks.

        The table is fitted to them as well; then all predictions are multiplied by what makes the
        middle one of them right, since they are about today and about what is of interest.
        """
        shares = {a: ms / self._ms for a, ms in measured.items()}
        table = self.table.learnt(shares)
        pace = float(np.median([share / table(a) for a, share in shares.items()]))
        return PredictedLatency(table, self.whole, self._ms, pace)

    def near(self, aims: Sequence[float]) -> list[Architecture]:
        """For each aim in milliseconds a random network that is predicted to take about that."""
        return networks_at(self.many, self.cost.data.sizes, aims, seed=0)

    def fastest(self) -> Architecture:
        """The network that is predicted to be the fastest.

        Found by changing one layer, or two that follow each other, for as long as that helps.
        """
        sizes = self.cost.data.sizes
        rng = np.random.default_rng(0)
        drawn = rng.integers(0, sizes, (_DRAWN, len(sizes)))
        drawn[0] = 0
        here = drawn[int(self.many(drawn).argmin())]
        while True:
            around = _around(here, sizes)
            best = around[int(self.many(around).argmin())]
            if not self(tuple(best.tolist())) < self(tuple(here.tolist())):
                return tuple(here.tolist())
            here = best


def _around(network: NDArray[np.int64], sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """All networks that differ in one layer, or in two neighbouring ones."""
    found = [network[None]]
    for layer in range(max(1, len(sizes) - 1)):
        both = sizes[layer : layer + 2]
        changed = np.repeat(network[None], int(np.prod(both)), axis=0)
        changed[:, layer : layer + 2] = np.indices(both).reshape(len(both), -1).T
        found.append(changed)
    return np.concatenate(found)
