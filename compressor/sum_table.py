"""A cost that is a sum over groups of layers: one cell of a small table for each. Knows no torch.

Unlike multiply-adds, it may fall where an option grows: latency does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from compressor.space import Architecture

_MOST = 2**46  # steps of one cell; sums of as many as can be stay far below 2^63


class Places:
    """Where the cells of an architecture lie in one long array of all tables."""

    def __init__(self, groups: Sequence[tuple[int, ...]], sizes: Sequence[int]) -> None:
        """Takes the layers of each table and the number of options of all layers.

        Raises:
            ValueError: a group names a layer that is not there.
        """
        if not all(0 <= layer < len(sizes) for group in groups for layer in group):
            raise ValueError(f"a table is over {len(sizes)} layers, but names others: {groups}")
        most = max([1, *map(len, groups)])
        self._layers = np.zeros((len(groups), most), dtype=np.int64)
        self._strides = np.zeros((len(groups), most), dtype=np.int64)
        self._starts = np.zeros(len(groups), dtype=np.int64)
        self.count = 0
        for row, group in enumerate(groups):
            self._starts[row], stride = self.count, 1
            for column, layer in reversed(list(enumerate(group))):
                self._layers[row, column], self._strides[row, column] = layer, stride
                stride *= sizes[layer]
            self.count += stride

    def of(self, architectures: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places of the cells of networks `[N, L]`, `[N, groups]`."""
        options = architectures[:, self._layers]
        places: NDArray[np.int64] = (options * self._strides).sum(axis=2) + self._starts
        return places


@dataclass(frozen=True)
class SumData:
    """A `SumCost` as plain values, for `compressor.plain`.

    Attributes:
        unit: of the cost.
        sizes: number of options of each layer.
        groups: the layers of each table.
        cells: of all tables one after the other, the last layer of a group fastest, in steps.
        constant: steps that every network has besides.
        step: size of a step in the unit's base.
    """

    unit: str
    sizes: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    cells: tuple[int, ...]
    constant: int
    step: float

    def scaled(self, factor: float) -> SumData:
        """The same costs in another unit, a factor as many of it."""
        return replace(self, step=self.step * factor)


@runtime_checkable
class Predicted(Protocol):
    """A cost whose figures are those of a sum, whatever else it can do."""

    @property
    def cost(self) -> SumCost:
        """The sum."""


class SumCost:
    """Cost of any architecture in microseconds; satisfies `compressor.cost.BatchCost`."""

    monotone = False

    def __init__(self, data: SumData) -> None:
        """Takes the plain values; a cost is fully described by its `data`.

        Raises:
            ValueError: they contradict each other, or are too large to add up.
        """
        self.data, self.unit = data, data.unit
        self._places = Places(data.groups, data.sizes)
        if self._places.count != len(data.cells):
            raise ValueError(
                f"tables of {self._places.count} cells in all got {len(data.cells)} cells"
            )
        if not (math.isfinite(data.step) and data.step > 0):
            raise ValueError(f"a step must be a number above 0, but got {data.step}")
        if max(map(abs, (*data.cells, data.constant)), default=0) > _MOST:
            raise ValueError(f"a cell must be at most {_MOST} steps")
        # Sums of whole numbers are exact, and so the same one by one as for many at once.
        self._cells = np.array(data.cells, dtype=np.int64)

    def __call__(self, architecture: Architecture) -> float:
        """Cost of the network; the architecture must belong to the space."""
        return float(self.many(np.array([architecture], dtype=np.int64))[0])

    def many(self, architectures: NDArray[np.int64]) -> NDArray[np.float64]:
        """Costs of networks `[N, L]`, `[N]`; the same as one by one."""
        steps = self._cells[self._places.of(architectures)].sum(axis=1) + self.data.constant
        found: NDArray[np.float64] = steps * self.data.step
        return found
