"""An additive guess of what networks cost, corrected by every cost that becomes known.

Costs are not additive: multiply-adds are products of neighbouring widths, and latency is whatever
was measured. The recombination needs costs that add up, so it works with this guess, and every
network that it proposes is checked with the true cost. Knows no torch.
"""

from __future__ import annotations

import math

import numpy as np

from compressor.search.kernels import Floats, Networks

_MEMORY = 0.7  # weight of the earlier errors in the present one
_NOISE = 0.1  # share of a deviation that no sum of corrections explains


class CostGuess:
    """`offset + sum over layers of table[layer, option]`, in shares of the limit."""

    def __init__(self, table: Floats, offset: float, window: int) -> None:
        """Starts from a table.

        Args:
            table: share of the limit that each option adds, [L, S].
            offset: what is added to that.
            window: number of known costs that correct the guess, the newest count.
        """
        self._start, self._start_offset = table, offset
        self._table, self._offset = table, offset
        self._window = window
        self._known: dict[bytes, float] = {}
        self.error = 0.0
        self.learned = 0

    @property
    def table(self) -> Floats:
        """Share of the limit that each option adds, [L, S]."""
        return self._table

    @property
    def offset(self) -> float:
        """Share of the limit that every network takes besides."""
        return self._offset

    def of(self, networks: Networks) -> Floats:
        """The guess for each network, [N]."""
        return self._offset + _sums(self._table, networks)

    def learn(self, networks: Networks, shares: Floats) -> None:
        """Takes in true costs of networks, and keeps the size of the latest errors in `error`."""
        if not len(networks):
            return
        miss = float(np.mean((shares - self.of(networks)) ** 2))
        kept = _MEMORY if self._known else 0.0
        self.learned += len(networks)
        self.error = math.sqrt(kept * self.error**2 + (1 - kept) * miss)
        for network, share in zip(networks, shares.tolist(), strict=True):
            row = network.tobytes()
            self._known.pop(row, None)
            self._known[row] = share
        for row in list(self._known)[: max(0, len(self._known) - self._window)]:
            del self._known[row]
        self._correct()

    def _correct(self) -> None:
        """Ridge regression of the deviations from the table at the start."""
        layers, options = self._start.shape
        networks = np.frombuffer(b"".join(self._known), dtype=np.int64).reshape(-1, layers)
        shares = np.array(list(self._known.values()))
        deviation = shares - self._start_offset - _sums(self._start, networks)
        marks = np.zeros((len(networks), layers, options))
        np.put_along_axis(marks, networks[:, :, None], 1.0, axis=2)
        flat = marks.reshape(len(networks), -1)
        matrix = 1.0 + flat @ flat.T / layers + _NOISE * np.eye(len(networks))
        weights = np.linalg.solve(matrix, deviation)
        self._table = self._start + (weights @ flat).reshape(self._start.shape) / layers
        self._offset = self._start_offset + weights.sum()


def _sums(table: Floats, networks: Networks) -> Floats:
    sums: Floats = table[np.arange(networks.shape[1]), networks].sum(axis=1)
    return sums
