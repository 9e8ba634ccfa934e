"""Search layers, choices and architectures. Knows no torch.

A `SearchLayer` is one decision: how many channels a group of coupled tensors keeps, which kernel
a convolution is cropped to, or both. Its last choice is the original. An architecture is one
option index per search layer: hashable, orderable, JSON; it is the key of every cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from compressor.coupling import Coupling
from compressor.errors import ArchitectureError

PRODUCT = "product@"
"""Begins the names of operators that multiply."""

Architecture: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, order=True)
class Choice:
    """What one option keeps. A field is None where the layer does not decide it.

    Attributes:
        channels: channels kept of the layer's group.
        kernel: edge of the kernel, in elements.
    """

    channels: int | None = None
    kernel: int | None = None

    def __str__(self) -> str:
        parts = []
        if self.channels is not None:
            parts.append(f"{self.channels} ch")
        if self.kernel is not None:
            parts.append(f"k{self.kernel}")
        return ", ".join(parts)


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
class SearchLayer:
    """One decision of the search.

    Attributes:
        name: path of the module that the decision is named after.
        modules: paths of all modules that change with it.
        choices: the options; the last is the original, the first is cheapest in every respect.
        group: what a change of channels touches, or None.
        kernel: what a change of kernel touches, or None.
    """

    name: str
    modules: tuple[str, ...]
    choices: tuple[Choice, ...]
    group: ChannelGroup | None = None
    kernel: KernelCut | None = None


@dataclass(frozen=True)
class Frozen:
    """A part of the network that is kept as it is, with the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class SearchSpace:
    """All decisions of a network in forward order, and what could not be decided."""

    layers: tuple[SearchLayer, ...]
    frozen: tuple[Frozen, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of options of each layer."""
        return tuple(len(layer.choices) for layer in self.layers)

    @property
    def original(self) -> Architecture:
        """The architecture of the network as it came."""
        return tuple(n - 1 for n in self.sizes)

    @property
    def smallest(self) -> Architecture:
        """The architecture with the first option everywhere."""
        return (0,) * len(self.layers)

    def validate(self, architecture: Architecture) -> None:
        """Raises `ArchitectureError`, naming the layer, unless every option exists."""
        if len(architecture) != len(self.layers):
            raise ArchitectureError(
                f"an architecture of this space has {len(self.layers)} options, "
                f"but got {len(architecture)}: {architecture}"
            )
        for layer, option in zip(self.layers, architecture, strict=True):
            if not 0 <= option < len(layer.choices):
                raise ArchitectureError(
                    f"option must be in 0..{len(layer.choices) - 1}, but got {option} "
                    f"for layer {layer.name!r}"
                )

    def choices(self, architecture: Architecture) -> Iterator[tuple[SearchLayer, Choice]]:
        """Each layer with the choice that the architecture makes for it."""
        self.validate(architecture)
        for layer, option in zip(self.layers, architecture, strict=True):
            yield layer, layer.choices[option]

    def removed(self, architecture: Architecture) -> dict[tuple[str, int], set[int]]:
        """Positions that go, for each `(tensor, dimension)` that shrinks.

        Several layers may cut the same dimension (a convolution after a concatenation).
        """
        return self._positions(architecture, lambda group: group.couplings)

    def left_out(self, architecture: Architecture) -> dict[tuple[str, int], set[int]]:
        """Positions that go, for each operator and dimension that a statistic is taken over."""
        return self._positions(architecture, lambda group: group.statistics)

    def _positions(
        self, architecture: Architecture, of: Callable[[ChannelGroup], tuple[Coupling, ...]]
    ) -> dict[tuple[str, int], set[int]]:
        cuts: dict[tuple[str, int], set[int]] = {}
        for layer, choice in self.choices(architecture):
            if layer.group is None or choice.channels is None:
                continue
            units = layer.group.removed(choice.channels)
            for coupling in of(layer.group) if units else ():
                key = (coupling.tensor, coupling.dim)
                cuts.setdefault(key, set()).update(coupling.index.positions(units))
        return cuts

    def resized(self, architecture: Architecture) -> dict[tuple[str, int], tuple[Extent, int]]:
        """For each dimension of an activation that shrinks, what it was and its size now."""
        found: dict[tuple[str, int], tuple[Extent, int]] = {}
        for layer, choice in self.choices(architecture):
            if layer.group is None or choice.channels is None:
                continue
            gone = len(layer.group.removed(choice.channels))
            for extent in layer.group.extents if gone else ():
                key = (extent.activation, extent.dim)
                other, left = found.get(key, (extent, extent.shape[extent.dim]))
                found[key] = (extent.beside(other), left - gone * extent.per_unit)
        return found

    def kernels(self, architecture: Architecture) -> dict[str, int]:
        """New kernel edge for each convolution weight whose kernel shrinks."""
        return {
            layer.kernel.tensor: choice.kernel
            for layer, choice in self.choices(architecture)
            if layer.kernel and choice.kernel and choice.kernel != layer.kernel.kernel
        }

    def describe(self, architecture: Architecture) -> dict[str, str]:
        """Layer name to readable choice, for reports and error messages."""
        return {layer.name: str(choice) for layer, choice in self.choices(architecture)}

    def to_json(self) -> dict[str, Any]:
        """Plain values; everything needed to rebuild an architecture without the adapter."""
        return {
            "layers": [_layer_to_json(layer) for layer in self.layers],
            "frozen": [{"name": f.name, "reason": f.reason} for f in self.frozen],
        }

    @classmethod
    def from_json(cls, data: Any) -> SearchSpace:
        """Inverse of `to_json`; raises `ArchitectureError` where `data` has another form."""
        try:
            layers = tuple(_layer_from_json(d) for d in data["layers"])
            frozen = tuple(Frozen(str(d["name"]), str(d["reason"])) for d in data["frozen"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ArchitectureError(f"a stored search space cannot be read: {error!r}") from error
        return cls(layers, frozen)


def _layer_to_json(layer: SearchLayer) -> dict[str, Any]:
    group, kernel = layer.group, layer.kernel
    return {
        "name": layer.name,
        "modules": list(layer.modules),
        "choices": [[c.channels, c.kernel] for c in layer.choices],
        "group": group
        and {
            "width": group.width,
            "per_unit": group.per_unit,
            "order": list(group.order),
            "couplings": [c.to_json() for c in group.couplings],
            "extents": [
                [e.activation, e.dim, list(e.shape), e.per_unit, e.written, e.whole, e.exported]
                for e in group.extents
            ],
            "statistics": [c.to_json() for c in group.statistics],
        },
        "kernel": kernel
        and {"tensor": kernel.tensor, "kernel": kernel.kernel, "spatial": kernel.spatial},
    }


def _layer_from_json(data: Any) -> SearchLayer:
    group, kernel = data["group"], data["kernel"]
    return SearchLayer(
        name=str(data["name"]),
        modules=tuple(map(str, data["modules"])),
        choices=tuple(Choice(_kept(c), _kept(k)) for c, k in data["choices"]),
        group=None if group is None else _group_from_json(group),
        kernel=None
        if kernel is None
        else KernelCut(str(kernel["tensor"]), int(kernel["kernel"]), int(kernel["spatial"])),
    )


def _group_from_json(data: Any) -> ChannelGroup:
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


def _kept(value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"a choice keeps at least 1, but got {value!r}")
    return value
