"""Tables of trained networks: what a search would find out, without training anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressor.space import Architecture

TIGHTNESS = 0.9  # a band reaches from this share of its limit up to the limit


class TableCost:
    """Multiply-adds looked up in a table; infinite for networks that the table does not hold."""

    unit = "madds"

    def __init__(self, keys: Keys, costs: NDArray[np.float64]) -> None:
        """Looks through the table once, to see whether a larger option is ever cheaper."""
        self._keys, self._costs = keys, costs
        self.monotone = _monotone(keys, costs)

    def __call__(self, architecture: Architecture) -> float:
        """Cost of one network."""
        row = self._keys.row(architecture)
        return float("inf") if row is None else float(self._costs[row])

    def many(self, architectures: NDArray[np.int64]) -> NDArray[np.float64]:
        """Costs of networks [N, L]."""
        rows = self._keys.rows(architectures)
        return np.where(rows >= 0, self._costs[rows], np.inf)


class Keys:
    """Which row of a table holds which network."""

    def __init__(self, networks: NDArray[np.int64]) -> None:
        """Takes option indices [N, L], every row another network."""
        self.networks = networks
        self.sizes = tuple((networks.max(axis=0) + 1).tolist())
        self._strides = np.array(
            [int(np.prod(self.sizes[i + 1 :])) for i in range(len(self.sizes))], dtype=np.int64
        )
        keys = networks @ self._strides
        self._order = np.argsort(keys)
        self._sorted = keys[self._order]
        if (np.diff(self._sorted) == 0).any():
            raise ValueError("every row of `arch` must be another network, but some are equal")
        self._of = {key: row for row, key in enumerate(keys.tolist())}
        self._factors = self._strides.tolist()

    @property
    def complete(self) -> bool:
        """Whether every combination of options has a row."""
        return len(self.networks) == int(np.prod(self.sizes))

    def row(self, architecture: Architecture) -> int | None:
        """The row of a network, None where it has none."""
        key = sum(o * f for o, f in zip(architecture, self._factors, strict=True))
        return self._of.get(key)

    def rows(self, architectures: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of networks [N, L], -1 where there is none."""
        keys = architectures @ self._strides
        places = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[places] == keys, self._order[places], -1)


@dataclass(frozen=True)
class Table:
    """One file.

    Attributes:
        keys: the networks; options of each layer by rising mean cost, as search layers have it.
        cost: multiply-adds of each network.
        costs: the same by row.
        scores: independent noisy scores of each network, [N, R].
        final: what counts in the end, [N].
    """

    keys: Keys
    cost: TableCost
    costs: NDArray[np.float64]
    scores: NDArray[np.float64]
    final: NDArray[np.float64]

    @classmethod
    def load(cls, path: Path) -> Table:
        """Reads `arch` [N, L], `acc` [N, R], `flops` [N] and, where it is there, `final` [N]."""
        with np.load(path, allow_pickle=False) as data:
            content = {name: data[name] for name in data.files}
        missing = {"arch", "acc", "flops"} - content.keys()
        if missing:
            raise ValueError(f"a table holds arch, acc and flops, but {path} lacks {missing}")
        costs = content["flops"].astype(np.float64)
        scores = content["acc"].astype(np.float64).reshape(len(costs), -1)
        final = content.get("final", scores.mean(axis=1)).astype(np.float64)
        keys = Keys(_indexed(content["arch"], costs))
        return cls(keys, TableCost(keys, costs), costs, scores, final)

    def band(self, share: float) -> NDArray[np.intp]:
        """Rows whose cost is in the band below a share of the largest cost."""
        high = self.high(share)
        return np.flatnonzero((self.costs <= high) & (self.costs >= TIGHTNESS * high))

    def high(self, share: float) -> float:
        """The limit of a band."""
        return share * float(self.costs.max())


class NoisyScore:
    """Draws one of a network's scores at each evaluation; the same draws for the same seed."""

    def __init__(self, table: Table, seed: int) -> None:
        """Starts the draws anew."""
        self._table = table
        self._rng = np.random.default_rng([seed, 1])

    def __call__(self, architecture: Architecture) -> float:
        """One score."""
        row = self._table.keys.row(architecture)
        if row is None:
            raise LookupError(f"the table has no network {architecture}")
        scores = self._table.scores[row]
        return float(scores[self._rng.integers(len(scores))])


def _indexed(arch: NDArray[np.integer], costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Options as indices by rising mean cost; equally expensive ones stay in their order."""
    columns = []
    for column in arch.T:
        values, inverse = np.unique(column, return_inverse=True)
        means = np.bincount(inverse, weights=costs) / np.bincount(inverse)
        rank = np.empty(len(values), dtype=np.int64)
        rank[np.argsort(means, kind="stable")] = np.arange(len(values))
        columns.append(rank[inverse])
    return np.stack(columns, axis=1)


def _monotone(keys: Keys, costs: NDArray[np.float64]) -> bool:
    """Whether the table is complete and no larger option is ever cheaper."""
    if not keys.complete:
        return False
    grid = np.empty(keys.sizes)
    grid[tuple(keys.networks.T)] = costs
    return all(bool((np.diff(grid, axis=axis) >= 0).all()) for axis in range(grid.ndim))
