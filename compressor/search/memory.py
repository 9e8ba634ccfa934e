"""The networks that a surrogate knows, and what they have in common, without copies as it grows.

Knows no torch.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from compressor.search.kernels import Floats, Kernels, Marks, Networks

_Number = TypeVar("_Number", np.int64, np.float64)


class Memory:
    """Marks and common covariances of networks, in arrays that double when they are full."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._count = 0
        self._space = kernels.marked(np.zeros((0, kernels.layers), dtype=np.int64))
        self._parts: Floats = np.zeros((kernels.common, 0, 0))

    @property
    def marks(self) -> Marks:
        """The networks that are known; views."""
        return self._space.part(slice(self._count))

    @property
    def parts(self) -> Floats:
        """Covariance of each common part, [common, N, N]; a view."""
        return self._parts[:, : self._count, : self._count]

    def add(self, networks: Networks) -> None:
        """Takes in networks behind those known."""
        new = self._kernels.marked(networks)
        old, self._count = self._count, self._count + len(new)
        self._reserve()
        place = self._space.part(slice(old, self._count))
        place.networks[:], place.places[:] = new.networks, new.places
        place.marks[:], place.counts[:] = new.marks, new.counts
        rows = self._kernels.between(new, self.marks)
        self.parts[:, old:] = rows
        self.parts[:, :, old:] = rows.transpose(0, 2, 1)

    def forget(self, count: int) -> None:
        """Keeps the first networks only."""
        self._count = min(self._count, count)

    def _reserve(self) -> None:
        old = self._space
        more = max(self._count, 2 * len(old)) - len(old)
        if self._count > len(old):
            self._space = Marks(
                _longer(old.networks, more), _longer(old.places, more),
                _longer(old.marks, more), _longer(old.counts, more),
            )  # fmt: skip
            self._parts = np.pad(self._parts, ((0, 0), (0, more), (0, more)))


def _longer(rows: NDArray[_Number], more: int) -> NDArray[_Number]:
    longer: NDArray[_Number] = np.pad(rows, ((0, more), (0, 0)))
    return longer
