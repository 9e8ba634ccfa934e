"""An additive guess of what networks cost, corrected by every cost that becomes known.

Costs are not additive: multiply-adds are products of neighbouring widths, and latency is whatever
was measured. The recombination needs costs that add up, so it works with this guess, and every
network that it proposes is checked with the true cost. Knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from compressor.kernels import Floats, Networks

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
        self._known: dict[tuple[int, ...], float] = {}
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
        for row, share in zip(networks.tolist(), shares.tolist(), strict=True):
            self._known.pop(tuple(row), None)
            self._known[tuple(row)] = share
        for row in list(self._known)[: max(0, len(self._known) - self._window)]:
            del self._known[row]
        self._correct()

    def _correct(self) -> None:
        """Ridge regression of the deviations from the table at the start."""
        networks = np.array(list(self._known), dtype=np.int64)
        shares = np.array(list(self._known.values()))
        deviation = shares - self._start_offset - _sums(self._start, networks)
        layers = networks.shape[1]
        same = (networks[:, None] == networks[None]).mean(axis=2)
        matrix = 1.0 + same + _NOISE * np.eye(len(networks))
        weights = np.linalg.solve(matrix, deviation)
        change = np.zeros_like(self._start)
        for layer in range(layers):
            np.add.at(change[layer], networks[:, layer], weights / layers)
        self._table, self._offset = self._start + change, self._start_offset + weights.sum()


def single_changes(sizes: Sequence[int], bases: Networks) -> Networks:
    """The networks that differ from the bases in one layer, [bases * options, L]."""
    rows = []
    for base in bases:
        for layer, size in enumerate(sizes):
            block = np.repeat(base[None], size, axis=0)
            block[:, layer] = np.arange(size)
            rows.append(block)
    return np.concatenate(rows)


def _sums(table: Floats, networks: Networks) -> Floats:
    sums: Floats = table[np.arange(networks.shape[1]), networks].sum(axis=1)
    return sums
