"""What an architecture costs. Knows no torch.

MAdds are counted as: one multiply and one add of a convolution, linear layer or matrix product,
batch 1, counted once; nothing else counts. Each of them is `numel(weight) * positions`, where
the positions (how often the weight is applied) do not change when channels or kernels are cut.
So one traced forward pass of the original gives an exact table for every architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from compressor.errors import BudgetError
from compressor.space import Architecture, SearchLayer, SearchSpace


class CostModel(Protocol):
    """Lower is better. `monotone`: a larger option never makes the network cheaper."""

    @property
    def unit(self) -> str:
        """A key of `compressor.budget.UNITS`."""

    @property
    def monotone(self) -> bool:
        """Whether bounds may be taken from the smallest and largest options."""

    def __call__(self, architecture: Architecture) -> float:
        """Cost of the network in the unit's base."""


@runtime_checkable
class BatchCost(CostModel, Protocol):
    """A cost that is exact and cheap enough to be asked of thousands of networks at once."""

    def many(self, architectures: NDArray[np.int64]) -> NDArray[np.float64]:
        """Costs of networks `[N, L]` in the unit's base, `[N]`; the same as one by one."""


def costs_of(cost: CostModel, architectures: NDArray[np.int64]) -> NDArray[np.float64]:
    """Costs of networks `[N, L]`, at once where the cost can do that, else one by one."""
    if isinstance(cost, BatchCost):
        return cost.many(architectures)
    return np.array([cost(tuple(row)) for row in architectures.tolist()], dtype=np.float64)


@dataclass(frozen=True)
class Limit:
    """A cost together with the most, and perhaps the least, that a network may have of it.

    Attributes:
        cost: what is limited.
        high: the most, in the unit's base.
        low: the least; None where a network may have as little as it likes.
    """

    cost: CostModel
    high: float
    low: float | None = None

    def __post_init__(self) -> None:
        if self.low is not None and not self.low <= self.high:
            raise BudgetError(
                "a range goes from less to more, but "
                f"{self.cost.unit} got {self.low} to {self.high}"
            )

    def holds(self, value: float) -> bool:
        """Whether a network of this cost keeps the limit."""
        return value <= self.high and (self.low is None or value >= self.low)


@dataclass(frozen=True)
class TensorSize:
    """A parameter of the original network.

    Attributes:
        name: name in the state dict.
        shape: its shape.
        positions: multiply-adds per element in one forward pass at batch 1.
    """

    name: str
    shape: tuple[int, ...]
    positions: int


_FACTORS = 3  # a weight shrinks in at most: output channels, input channels, kernel area


class SizeTable:
    """Exact cost of any architecture of a space in microseconds.

    The cost is `fixed + sum over tensors of weight * product of the sizes of its dimensions`.
    """

    monotone = True

    def __init__(
        self,
        unit: str,
        space: SearchSpace,
        tensors: Sequence[tuple[TensorSize, int]],
        fixed: int = 0,
    ) -> None:
        """Builds the table from `(tensor, cost per element)` pairs and a constant cost."""
        self.unit = unit
        self._fixed = fixed
        axes, base = _axes(space, {t.name: t for t, _ in tensors})
        self._base = np.array([*base, 1], dtype=np.int64)
        self._cuts, self._starts = _cut_rows(space, axes, self._base)
        factors, weights = [], []
        for tensor, weight in tensors:
            if weight:
                touched = [axes[k] for k in _tensor_axes(tensor.name, axes)]
                rest = tensor_numel(tensor.shape) // int(np.prod(self._base[touched]))
                factors.append(touched + [len(base)] * (_FACTORS - len(touched)))
                weights.append(weight * rest)
        self._factors = np.array(factors, dtype=np.int64).reshape(-1, _FACTORS)
        self._weights = np.array(weights, dtype=np.int64)

    def __call__(self, architecture: Architecture) -> int:
        """Cost of the network; the architecture must belong to the space."""
        rows = self._starts + np.asarray(architecture, dtype=np.int64)
        sizes = self._base - self._cuts[rows].sum(axis=0)
        return int(sizes[self._factors].prod(axis=1) @ self._weights) + self._fixed

    def many(self, architectures: NDArray[np.int64]) -> NDArray[np.float64]:
        """Costs of networks `[N, L]`, `[N]`; exact up to 2^53."""
        chosen = np.zeros((len(architectures), len(self._cuts)))
        np.put_along_axis(chosen, self._starts + architectures, 1.0, axis=1)
        # floats, since numpy multiplies matrices of integers without BLAS; the sizes are small
        sizes = (self._base - chosen @ self._cuts.astype(np.float64)).astype(np.int64)
        counts = sizes[:, self._factors].prod(axis=2) @ self._weights + self._fixed
        costs: NDArray[np.float64] = counts.astype(np.float64)
        return costs


def madds_table(space: SearchSpace, tensors: Sequence[TensorSize], fixed: int) -> SizeTable:
    """Multiply-adds of any architecture; `fixed` are those that belong to no parameter."""
    return SizeTable("madds", space, [(t, t.positions) for t in tensors], fixed)


def params_table(space: SearchSpace, tensors: Sequence[TensorSize]) -> SizeTable:
    """Number of parameters of any architecture."""
    return SizeTable("params", space, [(t, 1) for t in tensors])


def layer_control(cost: CostModel, space: SearchSpace) -> tuple[float, ...]:
    """Cost that each layer alone can take away from the original network."""
    original = space.original
    whole = cost(original)
    return tuple(whole - cost((*original[:i], 0, *original[i + 1 :])) for i in range(len(original)))


def touched_madds(layers: Sequence[SearchLayer], tensors: Sequence[TensorSize]) -> int:
    """Multiply-adds of the original in those weights that these layers can shrink."""
    names = {c.tensor for layer in layers if layer.group for c in layer.group.couplings}
    names |= {layer.kernel.tensor for layer in layers if layer.kernel}
    return sum(t.positions * tensor_numel(t.shape) for t in tensors if t.name in names)


def tensor_numel(shape: Sequence[int]) -> int:
    """Number of elements, exact."""
    total = 1
    for size in shape:
        total *= size
    return total


_Axis = tuple[str, int]
_KERNEL = -1  # stands for all spatial dimensions of a convolution weight together


def _axes(space: SearchSpace, tensors: dict[str, TensorSize]) -> tuple[dict[_Axis, int], list[int]]:
    """Every dimension that some layer can cut, with its original size."""
    axes: dict[_Axis, int] = {}
    base: list[int] = []
    for layer in space.layers:
        keys = [(c.tensor, c.dim) for c in layer.group.couplings] if layer.group else []
        if layer.kernel:
            keys.append((layer.kernel.tensor, _KERNEL))
        for key in keys:
            if key[0] in tensors and key not in axes:
                axes[key] = len(base)
                if key[1] == _KERNEL and layer.kernel:
                    base.append(layer.kernel.kernel**layer.kernel.spatial)
                else:
                    base.append(tensors[key[0]].shape[key[1]])
    return axes, base


def _tensor_axes(name: str, axes: dict[_Axis, int]) -> list[_Axis]:
    return [(name, dim) for dim in (_KERNEL, 0, 1, 2, 3, 4) if (name, dim) in axes]


def _cut_rows(
    space: SearchSpace, axes: dict[_Axis, int], base: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One row for each option of each layer: what it takes off every axis."""
    starts = np.cumsum([0, *space.sizes[:-1]]) if space.layers else np.zeros(0)
    rows = np.zeros((sum(space.sizes), len(base)), dtype=np.int64)
    for layer, start in zip(space.layers, starts.astype(int), strict=True):
        for option, choice in enumerate(layer.choices):
            row = rows[start + option]
            if layer.group and choice.channels is not None:
                gone = (layer.group.width - choice.channels) // layer.group.per_unit
                for coupling in layer.group.couplings:
                    axis = axes.get((coupling.tensor, coupling.dim))
                    if axis is not None:
                        row[axis] += gone * coupling.index.per_unit
            if layer.kernel and choice.kernel is not None:
                axis = axes.get((layer.kernel.tensor, _KERNEL))
                if axis is not None:
                    row[axis] += base[axis] - choice.kernel**layer.kernel.spatial
    return rows, starts.astype(np.int64)
