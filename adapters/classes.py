"""Which channels of a network stand or fall together: classes that only ever grow."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.elements import Size, Statistic, pairs
from compressor.coupling import Role

NOTHING = 0
"""The identity of what no decision takes away."""


@dataclass
class Slices:
    """One dimension of one tensor: the identity at each position, and how the tensor meets it."""

    ids: NDArray[np.int64]
    role: Role


@dataclass
class Classes:
    """Identities of channels, which of them are tied, and which cannot be taken away.

    Attributes:
        slices: tensor and dimension to identities.
        sizes: of activations, to identities.
        statistics: to the identities that they are taken over.
        reasons: one identity of a class to why the class stays.
    """

    slices: dict[tuple[str, int], Slices] = field(default_factory=dict)
    sizes: dict[Size, NDArray[np.int64]] = field(default_factory=dict)
    statistics: dict[Statistic, NDArray[np.int64]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    _parent: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    _loose: set[int] = field(default_factory=set)

    def new(self, count: int, *, loose: bool = False) -> NDArray[np.int64]:
        """So many identities that nothing is tied to yet; see `loose`."""
        made = np.arange(len(self._parent), len(self._parent) + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, made])
        self._loose |= set(made.tolist()) if loose else set()
        return made

    def loose(self, ids: Tensor) -> bool:
        """Whether identities are only those of parameters that are used as activations.

        No channel has met them yet, so that they may as well be taken for constants.
        """
        return all(root in self._loose for root in torch.unique(self.roots(ids)).tolist())

    def roots(self, ids: Tensor) -> Tensor:
        """One identity for each class, in place of its members."""
        while True:
            higher = self._parent[self._parent]
            if (higher == self._parent).all():
                return torch.from_numpy(self._parent)[ids]
            self._parent = higher

    def tie(self, one: Tensor, other: Tensor) -> None:
        """Makes identities at equal places one; beside nothing an identity cannot be taken away."""
        one, other = torch.broadcast_tensors(self.roots(one), self.roots(other))  # type: ignore[no-untyped-call]
        differ = one != other
        found = pairs(one[differ], other[differ])
        for a, b in zip(*(side.tolist() for side in found), strict=True):
            if NOTHING in (a, b):
                self._keep(max(a, b), "it is added to something whose channels cannot be cut")
                continue
            low, high = sorted((self.root(a), self.root(b)))
            self._parent[high] = low
            if not {low, high} <= self._loose:
                self._loose.discard(low)
            if high in self.reasons:
                self.reasons.setdefault(low, self.reasons[high])

    def tie_along(self, ids: Tensor, dim: int) -> None:
        """Makes identities one that differ only in their place along a dimension."""
        self.tie(ids, ids.narrow(dim, 0, 1))

    def keep(self, ids: Tensor, reason: str) -> None:
        """Says why identities cannot be taken away; the first reason stays."""
        for root in torch.unique(self.roots(ids)).tolist():
            self._keep(root, reason)

    def meet(self, tensor: str, dim: int, size: int, role: Role, at: Tensor, ids: Tensor) -> None:
        """Notes that positions `at` of a tensor's dimension go with identities."""
        found = self.slices.setdefault((tensor, dim), Slices(np.zeros(size, dtype=np.int64), role))
        at, ids = at.reshape(-1), self.roots(ids.reshape(-1))
        before = torch.from_numpy(found.ids[at.numpy()])
        known = before != NOTHING
        if known.any():
            self.tie(before[known], ids[known])
            if found.role is not role and Role.THROUGH not in (found.role, role):
                self.keep(ids, f"{tensor!r} both makes and reads them")
        found.ids[at.numpy()] = ids.numpy()

    def made(
        self, tensor: str, dim: int, size: int, at: Tensor, role: Role = Role.PRODUCED
    ) -> Tensor:
        """Identities of the channels that positions of a tensor's dimension make."""
        found = self.slices.setdefault((tensor, dim), Slices(np.zeros(size, dtype=np.int64), role))
        places = at.numpy()
        fresh = np.unique(places[found.ids[places] == NOTHING])
        found.ids[fresh] = self.new(len(fresh), loose=role is Role.THROUGH)
        return torch.from_numpy(found.ids[places])

    def size(self, size: Size, ids: Tensor) -> None:
        """Notes that an activation is as large, in one of its sizes, as so many identities."""
        found = self.sizes.setdefault(size, ids.reshape(-1).numpy())
        self.tie(torch.from_numpy(found), ids.reshape(-1))

    def statistic(self, statistic: Statistic, ids: Tensor) -> None:
        """Notes what a statistic is taken over, at each position of its dimension."""
        found = self.statistics.setdefault(statistic, ids.reshape(-1).numpy())
        self.tie(torch.from_numpy(found), ids.reshape(-1))

    def root(self, one: int) -> int:
        """The identity that stands for a class."""
        while self._parent[one] != one:
            one = int(self._parent[one])
        return one

    def _keep(self, root: int, reason: str) -> None:
        if root != NOTHING:
            self.reasons.setdefault(self.root(root), reason)
