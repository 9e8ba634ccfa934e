"""The plain description of what a channel decision touches. Knows no torch.

A *unit* is what is kept or removed as a whole: one channel, or, where a grouped convolution
asks for it, the same local channel of every group. A `Coupling` says which positions of one
dimension of one tensor belong to each unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from compressor.errors import AdapterError


class Role(Enum):
    """How a tensor meets the channels of a decision."""

    PRODUCED = "produced"
    """The tensor makes the channels: rows of a convolution's or linear layer's weight, its bias."""

    CONSUMED = "consumed"
    """The tensor reads the channels: zeroing these slices is what *masked* means."""

    THROUGH = "through"
    """The tensor acts on each channel alone: BatchNorm, depthwise convolution, PReLU."""


@dataclass(frozen=True)
class Run:
    """Units `u` from `first` on, each at `offset + (u - first) * step + [0, length)`."""

    first: int
    units: int
    offset: int
    step: int
    length: int


@dataclass(frozen=True)
class IndexMap:
    """Positions of each unit along one dimension, as affine runs.

    Offsets after a concatenation, repeats after a flatten and the strides of grouped
    convolutions are each a single run; anything else takes as many runs as it needs.
    """

    runs: tuple[Run, ...]

    @classmethod
    def identity(cls, units: int) -> IndexMap:
        """Unit `u` at position `u`."""
        return cls((Run(0, units, 0, 1, 1),))

    @classmethod
    def from_positions(cls, positions: Sequence[Sequence[int]]) -> IndexMap:
        """Compresses one list of positions per unit; every unit must have equally many.

        Raises:
            AdapterError: units differ in their number of positions, so that the size of the cut
                tensor would depend on which units are removed.
        """
        counts = {len(p) for p in positions}
        if len(counts) != 1 or counts == {0}:
            raise AdapterError(
                "every unit of a coupling must have the same number of positions, at least one, "
                f"but got {sorted(counts)}"
            )
        open_runs: dict[int, Run] = {}
        done: list[Run] = []
        for unit, places in enumerate(positions):
            chunks = _chunks(sorted(places))
            done += [open_runs.pop(c) for c in list(open_runs) if c >= len(chunks)]
            for column, (start, length) in enumerate(chunks):
                run = open_runs.get(column)
                grown = _extended(run, unit, start, length) if run else None
                if run and grown is None:
                    done.append(run)
                open_runs[column] = grown or Run(unit, 1, start, 0, length)
        return cls(tuple(sorted([*done, *open_runs.values()], key=lambda r: (r.first, r.offset))))

    @property
    def per_unit(self) -> int:
        """Number of positions that one unit takes."""
        return sum(r.length for r in self.runs if r.first == 0)

    @property
    def end(self) -> int:
        """One past the largest position of any unit."""
        # a run may step backwards
        return max(r.offset + max(0, (r.units - 1) * r.step) + r.length for r in self.runs)

    def positions(self, units: Iterable[int]) -> list[int]:
        """Sorted positions of the given units."""
        wanted = sorted(units)
        found: list[int] = []
        for run in self.runs:
            for unit in wanted:
                if run.first <= unit < run.first + run.units:
                    start = run.offset + (unit - run.first) * run.step
                    found.extend(range(start, start + run.length))
        return sorted(found)

    def to_json(self) -> list[list[int]]:
        """Five integers a run: first, units, offset, step, length."""
        return [[r.first, r.units, r.offset, r.step, r.length] for r in self.runs]

    @classmethod
    def from_json(cls, data: Any) -> IndexMap:
        """Inverse of `to_json`."""
        return cls(tuple(Run(*map(int, row)) for row in data))


@dataclass(frozen=True)
class Coupling:
    """One dimension of one tensor that changes with a decision.

    Attributes:
        tensor: name in the network's state dict.
        dim: the dimension that is cut.
        role: how the tensor meets the channels.
        index: where each unit sits along `dim`.
    """

    tensor: str
    dim: int
    role: Role
    index: IndexMap

    def to_json(self) -> dict[str, Any]:
        """Plain values for `architecture.json`."""
        return {
            "tensor": self.tensor,
            "dim": self.dim,
            "role": self.role.value,
            "index": self.index.to_json(),
        }

    @classmethod
    def from_json(cls, data: Any) -> Coupling:
        """Inverse of `to_json`."""
        return cls(
            str(data["tensor"]),
            int(data["dim"]),
            Role(data["role"]),
            IndexMap.from_json(data["index"]),
        )


def _chunks(places: Sequence[int]) -> list[tuple[int, int]]:
    """Sorted positions as `(start, length)` of their contiguous stretches."""
    chunks: list[tuple[int, int]] = []
    for place in places:
        if chunks and place == chunks[-1][0] + chunks[-1][1]:
            chunks[-1] = (chunks[-1][0], chunks[-1][1] + 1)
        else:
            chunks.append((place, 1))
    return chunks


def _extended(run: Run, unit: int, start: int, length: int) -> Run | None:
    """The run with one more unit, or None where the unit does not continue it."""
    if unit != run.first + run.units or length != run.length:
        return None
    step = start - run.offset if run.units == 1 else run.step
    if start != run.offset + run.units * step:
        return None
    return Run(run.first, run.units + 1, run.offset, step, length)
