"""Which units of a channel group to drop: exact greedy backward elimination.

Dropping the inputs u of a weight W that is refitted optimally afterwards costs
tr(W[:, u] (H⁻¹[u, u])⁻¹ W[:, u]ᵀ), H the system of `compressor.refit.least_squares`; W and H⁻¹ then
follow exactly (optimal brain surgeon for groups of weights; ZipLM, arXiv 2302.04089, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SHARE = 16  # pending updates are carried out once they hold a 16th of the columns left
_COLUMNS = 64  # but not for fewer columns than this


@dataclass(frozen=True)
class Reader:
    """A weight that reads units.

    Attributes:
        system: covariance or second moment with its ridge, `[G, D, D]`, float64.
        weight: `[G, O / G, D]`.
        places: the inputs of each unit, `[units, p]`, the same in every group.
        importance: what its costs are multiplied by; above 0.
    """

    system: Tensor
    weight: Tensor
    places: Tensor
    importance: float = 1.0


def elimination_order(readers: Sequence[Reader], units: int) -> tuple[int, ...]:
    """Units from the first to keep to the first to drop, by greedy backward elimination.

    One at a time the unit goes whose loss costs least after its readers are refitted to what is
    left. The costs of several readers are added, each as a share of the mean square of its
    outputs times its importance; of equal costs the earlier unit goes.

    Args:
        readers: whoever reads the units, at least one.
        units: number of units.
    """
    states = [_State(reader) for reader in readers]
    alive = torch.ones(units, dtype=torch.bool)
    dropped: list[int] = []
    while len(dropped) < units - 1:
        costs = torch.zeros(units, dtype=torch.float64)
        for state in states:
            costs.index_add_(0, state.units, state.costs())
        costs[~alive] = torch.inf
        cheapest = int(costs.argmin())
        alive[cheapest] = False
        dropped.append(cheapest)
        for state in states:
            state.drop(cheapest)
    return (int(alive.nonzero()), *reversed(dropped))


class _State:
    """One reader while its inputs are eliminated.

    Of the weight and of the inverse of H only what the units read is kept: the inputs are sorted
    by unit, p in a row. Each drop changes both by a product of two thin matrices. These are kept
    aside and carried out many at a time; until then they are applied to the columns that are
    asked for. What the costs need, the blocks on the diagonals of H⁻¹ and of WᵀW, is current.
    """

    def __init__(self, reader: Reader) -> None:
        places, weight = reader.places.flatten(), reader.weight.double()
        self._per_unit = reader.places.shape[1]
        self.units = torch.arange(len(reader.places))
        whole = float(((weight @ reader.system) * weight).sum().clamp_min(1e-30))
        self._scale = whole / reader.importance
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(reader.system))
        self._inverse = _part(inverse, places)
        self._weight = weight[:, :, places]
        self._blocks = self._inverse_blocks(), self._weight_blocks()
        self._start()

    def costs(self) -> Tensor:
        """Cost of dropping each of `units`; without meaning for those dropped already."""
        inverse, gram = self._blocks
        solved: Tensor = torch.linalg.solve(inverse, gram)
        return solved.diagonal(dim1=2, dim2=3).sum((0, 2)) / self._scale

    def drop(self, unit: int) -> None:
        """Takes the inputs of a unit out; the rest is optimal for what is left."""
        p = self._per_unit
        at = int((self.units == unit).nonzero())
        own = slice(at * p, at * p + p)
        column, weight, gram = self._columns(own)
        gain: Tensor = torch.linalg.solve(column[:, own], column, left=False)
        new = slice(self._filled, self._filled + p)
        for pending, values in zip(self._pending, (column, gain, weight), strict=True):
            pending[:, :, new] = values
        self._filled += p
        # (W - w Kᵀ)ᵀ (W - w Kᵀ) is WᵀW less C Kᵀ and its transpose, with K the gain
        cross = gram - 0.5 * gain @ gram[:, own]
        self._follow(at, *(_by_unit(rows, p) for rows in (column, gain, cross)))
        self._alive[at] = False
        if self._filled + p > self._pending[0].shape[2]:
            self._carry_out()

    def _start(self) -> None:
        """Room for what is pending: columns of the inverse, gains, and columns of the weight."""
        groups, rows, size = self._weight.shape
        room = max(size // _SHARE, min(_COLUMNS, size), self._per_unit)
        room -= room % self._per_unit
        self._pending = tuple(self._weight.new_empty(groups, n, room) for n in (size, size, rows))
        self._filled = 0
        self._alive = torch.ones(len(self.units), dtype=torch.bool)

    def _columns(self, own: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Current columns of H⁻¹ `[G, size, p]`, of W `[G, O / G, p]`, of WᵀW `[G, size, p]`."""
        columns, gains, weights = (pending[:, :, : self._filled] for pending in self._pending)
        column = self._inverse[:, :, own] - columns @ gains[:, own].mT
        weight = self._weight[:, :, own] - weights @ gains[:, own].mT
        gram = self._weight.mT @ weight - gains @ (weights.mT @ weight)
        return column, weight, gram

    def _follow(self, at: int, column: Tensor, gain: Tensor, cross: Tensor) -> None:
        inverse, gram = self._blocks
        inverse -= gain @ column.mT
        change = cross @ gain.mT
        gram -= change + change.mT
        # What rounding leaves of a dropped unit must neither count nor be singular.
        inverse[:, at] = torch.eye(self._per_unit, dtype=inverse.dtype)
        gram[:, at] = 0

    def _carry_out(self) -> None:
        """Applies what is pending, to the units that are left; the others go."""
        left = self._alive.nonzero().flatten()
        kept = (left[:, None] * self._per_unit + torch.arange(self._per_unit)).flatten()
        columns, gains, weights = (pending[:, :, : self._filled] for pending in self._pending)
        columns, gains = columns[:, kept], gains[:, kept]
        self._inverse = _part(self._inverse, kept).baddbmm_(gains, columns.mT, alpha=-1)
        self._weight = self._weight[:, :, kept].baddbmm_(weights, gains.mT, alpha=-1)
        self._blocks = (self._blocks[0][:, left], self._blocks[1][:, left])
        self.units = self.units[left]
        self._start()

    def _inverse_blocks(self) -> Tensor:
        """Blocks on the diagonal of H⁻¹, one a unit: `[G, units, p, p]`."""
        groups, p = self._inverse.shape[0], self._per_unit
        blocks = self._inverse.reshape(groups, len(self.units), p, len(self.units), p)
        return blocks.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).clone()

    def _weight_blocks(self) -> Tensor:
        """Blocks on the diagonal of WᵀW, one a unit: `[G, units, p, p]`."""
        rows = _by_unit(self._weight.mT, self._per_unit)
        return rows @ rows.mT


def _by_unit(rows: Tensor, per_unit: int) -> Tensor:
    """`[G, size, n]` as `[G, units, p, n]`."""
    return rows.reshape(rows.shape[0], -1, per_unit, rows.shape[2])


def _part(matrix: Tensor, kept: Tensor) -> Tensor:
    return matrix[:, kept[:, None], kept[None, :]]
