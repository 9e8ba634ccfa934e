"""What an architecture costs. Knows no torch.

MAdds are counted as: one multiply and one add of a convolution, linear layer or matrix product,
batch 1, counted once; nothing else counts. Each of them is `numel(weight) * positions`, where
the positions (how often the weight is applied) stay when channels or kernels are cut, or shrink
with an extent, as products between activations do. Without its block nothing of it is left, which
is one more factor, 0 or 1. So one traced forward pass of the original gives an exact table for
every architecture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from compressor.errors import BudgetError
from compressor.space import (
    Architecture,
    Block,
    ChannelGroup,
    Choice,
    SearchLayer,
    SearchSpace,
)


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


def is_exact(limit: Limit) -> bool:
    """Whether a cost is a table that answers in microseconds, not a measurement."""
    return limit.cost.monotone or isinstance(limit.cost, BatchCost)


@dataclass(frozen=True)
class TensorSize:
    """A parameter of the original network, or one product.

    Attributes:
        name: name in the state dict; of a product, its place among all that are counted.
        shape: its shape; of a product, its output's and the size that is summed over.
        positions: multiply-adds per element in one forward pass at batch 1.
        of: of a product, the parameter that takes part in it, which counts it as well; empty for
            a parameter, and for a product between two activations.
    """

    name: str
    shape: tuple[int, ...]
    positions: int
    of: str = ""

    @property
    def madds(self) -> int:
        """Multiply-adds of one forward pass."""
        return self.positions * tensor_numel(self.shape)


@dataclass(frozen=True)
class TableData:
    """A `SizeTable` as plain values, for `compressor.plain`.

    Attributes:
        unit: of the cost.
        fixed: cost that every network has.
        sizes: of all dimensions that some layer can cut.
        cuts: for each option of each layer `[dimension, what it takes away]`, as often as needed.
        products: `[weight, dimension, …]`: the cost is the sum of these products of sizes.
    """

    unit: str
    fixed: int
    sizes: tuple[int, ...]
    cuts: tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]
    products: tuple[tuple[int, ...], ...]


# that shrink: output and input channels, kernel area, two more of a product, and its block
_FACTORS = 6


class SizeTable:
    """Exact cost of any architecture of a space in microseconds.

    The cost is `fixed + sum over tensors of weight * product of the sizes of its dimensions`.
    """

    monotone = True

    def __init__(self, data: TableData) -> None:
        """Takes the plain values; a table is fully described by its `data`.

        Raises:
            ValueError: they contradict each other.
        """
        self.data, self.unit, self._fixed = data, data.unit, data.fixed
        self._base = np.array([*data.sizes, 1], dtype=np.int64)
        self._cuts, self._owners = _by_axis(data)
        rest = len(data.sizes)  # of size 1
        self._factors = np.full((len(data.products), _FACTORS), rest, dtype=np.int64)
        for factors, (_, *axes) in zip(self._factors, data.products, strict=True):
            factors[: len(axes)] = [_place(axis, data) for axis in axes]
        self._weights = np.array([weight for weight, *_ in data.products], dtype=np.int64)

    @classmethod
    def of(
        cls,
        unit: str,
        space: SearchSpace,
        tensors: Sequence[tuple[TensorSize, int]],
        fixed: int = 0,
    ) -> SizeTable:
        """Builds the table from `(tensor, cost per element)` pairs and a constant cost."""
        axes, sizes = _axes(space, {t.name: t for t, _ in tensors})
        blocks = _blocks(space.layers)
        products = []
        for tensor, weight in tensors:
            if weight:
                names = (tensor.of, tensor.name) if tensor.of else (tensor.name,)
                touched = [axes[k] for name in names for k in _tensor_axes(name, axes)]
                touched += [axes[b.module, _BLOCK] for b in blocks if any(map(b.holds, names))]
                rest = tensor_numel(tensor.shape) // math.prod(sizes[axis] for axis in touched)
                products.append((weight * rest, *touched))
        cuts = _cuts(space, axes, sizes)
        return cls(TableData(unit, fixed, tuple(sizes), cuts, tuple(products)))

    def __call__(self, architecture: Architecture) -> int:
        """Cost of the network; the architecture must belong to the space."""
        return int(self._counts(np.asarray(architecture, dtype=np.int64)[None])[0])

    def many(self, architectures: NDArray[np.int64]) -> NDArray[np.float64]:
        """Costs of networks `[N, L]`, `[N]`; exact up to 2^53."""
        costs: NDArray[np.float64] = self._counts(architectures).astype(np.float64)
        return costs

    def _counts(self, architectures: NDArray[np.int64]) -> NDArray[np.int64]:
        sizes = np.repeat(self._base[None], len(architectures), axis=0)
        for cuts, owners in zip(self._cuts, self._owners, strict=True):
            sizes -= cuts[np.arange(len(owners)), architectures[:, owners]]
        counts: NDArray[np.int64] = sizes[:, self._factors].prod(axis=2) @ self._weights
        return counts + self._fixed


def madds_table(
    space: SearchSpace,
    tensors: Sequence[TensorSize],
    fixed: int = 0,
    products: Sequence[TensorSize] = (),
) -> SizeTable:
    """Multiply-adds of any architecture.

    Args:
        space: what can be cut.
        tensors: the network's parameters.
        fixed: multiply-adds that every network has.
        products: those between activations; and those of parameters, of which the ones are
            looked at whose number of rows shrinks.
    """
    shrinking = {e.activation for x in space.layers if x.group for e in x.group.extents}
    shrinking |= {name for block in _blocks(space.layers) for name in block.products}
    cut = [p for p in products if p.name in shrinking]
    rest = sum(p.madds for p in products if p.name not in shrinking and not p.of)
    apart: dict[str, int] = {}
    for product in cut:
        apart[product.of] = apart.get(product.of, 0) + product.madds
    kept = [
        (t, t.positions - apart.get(t.name, 0) // max(tensor_numel(t.shape), 1)) for t in tensors
    ]
    return SizeTable.of("madds", space, [*kept, *((p, p.positions) for p in cut)], fixed + rest)


def params_table(space: SearchSpace, tensors: Sequence[TensorSize]) -> SizeTable:
    """Number of parameters of any architecture."""
    return SizeTable.of("params", space, [(t, 1) for t in tensors])


def layer_control(cost: CostModel, space: SearchSpace) -> tuple[float, ...]:
    """Cost that each layer alone can take away from the original network."""
    original = space.original
    whole = cost(original)
    return tuple(whole - cost((*original[:i], 0, *original[i + 1 :])) for i in range(len(original)))


def touched_madds(layers: Sequence[SearchLayer], tensors: Sequence[TensorSize]) -> int:
    """Multiply-adds of the original in those weights and products that these layers can shrink."""
    names = {name for layer in layers if layer.group for name, _ in _group_axes(layer.group)}
    names |= {layer.kernel.tensor for layer in layers if layer.kernel}
    names |= {t.name for block in _blocks(layers) for t in tensors if block.holds(t.name)}
    return sum(t.madds for t in tensors if t.name in names and t.of not in names)


def tensor_numel(shape: Sequence[int]) -> int:
    """Number of elements, exact."""
    total = 1
    for size in shape:
        total *= size
    return total


_Axis = tuple[str, int]
_KERNEL = -1  # stands for all spatial dimensions of a convolution weight together
_BLOCK = -2  # stands for a block, which is there or not


def _blocks(layers: Sequence[SearchLayer]) -> list[Block]:
    return [layer.block for layer in layers if layer.block]


def _axes(space: SearchSpace, tensors: dict[str, TensorSize]) -> tuple[dict[_Axis, int], list[int]]:
    """Every dimension that some layer can cut, with its original size."""
    axes: dict[_Axis, int] = {}
    base: list[int] = []
    for block in _blocks(space.layers):
        axes[block.module, _BLOCK] = len(base)
        base.append(1)
    for layer in space.layers:
        keys = _group_axes(layer.group) if layer.group else []
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


def _group_axes(group: ChannelGroup) -> list[_Axis]:
    """Dimensions of parameters and of activations that shrink with a group."""
    cut = [(c.tensor, c.dim) for c in group.couplings]
    return [*cut, *((e.activation, e.dim) for e in group.extents)]


def _tensor_axes(name: str, axes: dict[_Axis, int]) -> list[_Axis]:
    return [(name, dim) for dim in (_KERNEL, 0, 1, 2, 3, 4) if (name, dim) in axes]


def _cuts(
    space: SearchSpace, axes: dict[_Axis, int], sizes: Sequence[int]
) -> tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]:
    """What each option of each layer takes off every axis, where it takes something."""
    return tuple(
        tuple(tuple(_option_cuts(layer, choice, axes, sizes).items()) for choice in layer.choices)
        for layer in space.layers
    )


def _option_cuts(
    layer: SearchLayer, choice: Choice, axes: dict[_Axis, int], sizes: Sequence[int]
) -> dict[int, int]:
    cuts: dict[int, int] = {}
    if layer.group and choice.channels is not None:
        gone = (layer.group.width - choice.channels) // layer.group.per_unit
        per_unit = [c.index.per_unit for c in layer.group.couplings]
        per_unit += [e.per_unit for e in layer.group.extents]
        for key, taken in zip(_group_axes(layer.group), per_unit, strict=True):
            axis = axes.get(key)
            if axis is not None:
                cuts[axis] = cuts.get(axis, 0) + gone * taken
    if layer.kernel and choice.kernel is not None:
        axis = axes.get((layer.kernel.tensor, _KERNEL))
        if axis is not None:
            left = choice.kernel**layer.kernel.spatial
            cuts[axis] = cuts.get(axis, 0) + sizes[axis] - left
    if layer.block and not choice.kept:
        cuts[axes[layer.block.module, _BLOCK]] = 1
    return {axis: cut for axis, cut in cuts.items() if cut}


def _by_axis(data: TableData) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What each option takes off every axis, `[K, axes, options]`, and whose options, `[K, axes]`.

    The K-th entry is that of the K-th layer which cuts the axis: mostly there is one, after a
    concatenation there are several. Where there is none, nothing is taken off.
    """
    found: list[dict[int, dict[int, int]]] = [{} for _ in (*data.sizes, 1)]
    for layer, options in enumerate(data.cuts):
        for option, taken in enumerate(options):
            for axis, cut in taken:
                found[_place(axis, data)].setdefault(layer, {})[option] = cut
    most = max(map(len, found))
    cuts = np.zeros((most, len(found), max(map(len, data.cuts), default=1)), dtype=np.int64)
    owners = np.zeros((most, len(found)), dtype=np.int64)
    for axis, layers in enumerate(found):
        for rank, (layer, taken_off) in enumerate(layers.items()):
            owners[rank, axis] = layer
            for option, cut in taken_off.items():
                cuts[rank, axis, option] = cut
    return cuts, owners


def _place(axis: int, data: TableData) -> int:
    if not 0 <= axis < len(data.sizes):
        raise ValueError(f"a cost table has {len(data.sizes)} dimensions, but names {axis}")
    return axis
