"""What the elements of a tensor stand for: identities, or the elements of a parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Factors: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True)
class Size:
    """One size of an activation, as in `compressor.space.Extent`."""

    activation: str
    place: int
    shape: tuple[int, ...]
    written: bool = False
    whole: bool = True
    exported: bool = True


@dataclass(frozen=True)
class Statistic:
    """A dimension that an operator takes a statistic over, see `compressor.network.statistics`."""

    operator: str
    dim: int


@dataclass(frozen=True)
class Weight:
    """Elements of a parameter or buffer: which, by their number in it.

    Attributes:
        name: in the network.
        shape: of the whole.
        places: of each element its number.
        learnt: whether it is a parameter.
    """

    name: str
    shape: tuple[int, ...]
    places: Tensor
    learnt: bool = True

    def along(self, dim: int) -> Tensor:
        """The position of each element along a dimension of the parameter."""
        return (self.places // math.prod(self.shape[dim + 1 :])) % self.shape[dim]


def pairs(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Which numbers, none below 0, stand at equal places; each pair once, ascending."""
    base = int(other.max()) + 1 if other.numel() else 1
    both = torch.unique(one * base + other)  # by rows it takes ten times as long
    return both // base, both % base


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of identities are the same."""
    return one.shape == other.shape and bool((one == other).all())


def shared(one: Tensor, other: Tensor) -> list[int]:
    """The dimensions along which both change."""
    sizes = zip(one.shape, other.shape, strict=True)
    return [dim for dim, (a, b) in enumerate(sizes) if a > 1 and b > 1]


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether both change along one dimension."""
    return bool(shared(one, other))


def constant(tensor: Tensor, dim: int) -> bool:
    """Whether a tensor does not change along a dimension."""
    return bool((tensor == tensor.narrow(dim, 0, 1)).all())


def own_sizes(tensor: Tensor) -> tuple[int, ...]:
    """The sizes of a tensor, with 1 where it repeats one number, as after `expand_as`."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tuple(size if stride else 1 for size, stride in sizes)


def led(factors: Factors, ndim: int) -> Factors:
    """With as many dimensions as the output."""
    return tuple(f.reshape((1,) * (ndim - f.dim()) + tuple(f.shape)) for f in factors)
