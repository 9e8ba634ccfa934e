"""What the choices of a search layer touch. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from compressor.coupling import Coupling

PRODUCT = "product@"
"""Begins the names of operators that multiply."""


@dataclass(frozen=True)
class Extent:
    """One dimension of an activation that shrinks with a decision.

    Attributes:
        activation: the output of a call that is told sizes (`compressor.network.sized`), or of a
            product (`compressor.network.counting`).
        dim: which of the sizes.
        shape: all of the sizes, of the original network and one input.
        per_unit: what one unit takes off. It is 0 of a size that stays, although the code derives
            it from one that shrinks, as that of a head from the width before the heads.
        written: whether the model's code writes the size out, so that it must be replaced.
        whole: whether the sizes are all those of one tensor, not of parts of one.
        exported: whether exported graphs write it out.
    """

    activation: str
    dim: int
    shape: tuple[int, ...]
    per_unit: int
    written: bool = False
    whole: bool = True
    exported: bool = True

    @property
    def product(self) -> bool:
        """Whether it is of an operator that multiplies."""
        return self.activation.startswith(PRODUCT)

    def beside(self, other: Extent) -> Extent:
        """The same size as two decisions see it."""
        return replace(
            self,
            per_unit=min(self.per_unit, other.per_unit),
            written=self.written or other.written,
            exported=self.exported or other.exported,
        )


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that must be cut together, and everything that changes with them.

    Attributes:
        width: channels of the original.
        per_unit: channels that are kept or removed as one unit.
        order: units from the first to keep to the first to remove; a permutation.
        couplings: the dimensions that shrink, at most one entry for each tensor and dimension.
        extents: dimensions of activations that shrink, where somebody must know.
        statistics: operators that are taken over the channels, as
            `compressor.network.statistics` names them, and where each unit sits in what they read.
    """

    width: int
    per_unit: int
    order: tuple[int, ...]
    couplings: tuple[Coupling, ...]
    extents: tuple[Extent, ...] = ()
    statistics: tuple[Coupling, ...] = ()

    def removed(self, channels: int) -> list[int]:
        """Units that go when `channels` channels stay."""
        return sorted(self.order[channels // self.per_unit :])


@dataclass(frozen=True)
class KernelCut:
    """A convolution whose kernel can be cropped around its centre.

    Attributes:
        tensor: name of its weight, `[out, in / groups, k, …]`.
        kernel: edge of the original kernel.
        spatial: number of spatial dimensions.
    """

    tensor: str
    kernel: int
    spatial: int


@dataclass(frozen=True)
class Block:
    """A residual block that can be left out: without it the network passes on what it reads.

    Attributes:
        module: its path.
        products: operators that multiply inside of it, weights aside; those of `Extent`.
    """

    module: str
    products: tuple[str, ...] = ()

    def holds(self, name: str) -> bool:
        """Whether a module, tensor, call or product of this name is of the block."""
        inside = name.startswith((f"{self.module}.", f"{self.module}@"))
        return inside or name == self.module or name in self.products


def group_to_json(group: ChannelGroup) -> dict[str, Any]:
    """Plain values."""
    return {
        "width": group.width,
        "per_unit": group.per_unit,
        "order": list(group.order),
        "couplings": [c.to_json() for c in group.couplings],
        "extents": [
            [e.activation, e.dim, list(e.shape), e.per_unit, e.written, e.whole, e.exported]
            for e in group.extents
        ],
        "statistics": [c.to_json() for c in group.statistics],
    }


def group_from_json(data: Any) -> ChannelGroup:
    """Inverse of `group_to_json`; raises what the values raise that have another form."""
    per_unit = int(data["per_unit"])
    if per_unit < 1:
        raise ValueError(f"per_unit must be at least 1, but got {per_unit}")
    return ChannelGroup(
        int(data["width"]),
        per_unit,
        tuple(map(int, data["order"])),
        tuple(Coupling.from_json(c) for c in data["couplings"]),
        tuple(_extent_from_json(e) for e in data.get("extents", ())),
        tuple(Coupling.from_json(c) for c in data.get("statistics", ())),
    )


def _extent_from_json(data: Any) -> Extent:
    activation, dim, shape, per_unit, *flags = data
    if not 2 <= len(flags) <= 3:  # files of older versions know of two
        raise ValueError(f"an extent has six or seven values, but got {data!r}")
    extent = Extent(
        str(activation), int(dim), tuple(map(int, shape)), int(per_unit), *map(bool, flags)
    )
    if not 0 <= extent.dim < len(extent.shape) or min(extent.shape, default=0) < 1:
        raise ValueError(f"an extent is one of its sizes, but got {data!r}")
    return extent
