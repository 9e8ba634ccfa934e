"""Search layers, choices and architectures. Knows no torch.

A `SearchLayer` is one decision: how many channels a group of coupled tensors keeps, which kernel
a convolution is cropped to, or both; or whether a block is kept at all. Its last choice is the
original. An architecture is one option index per search layer: hashable, orderable, JSON; it is
the key of every cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from compressor.coupling import Coupling
from compressor.cuts import (
    PRODUCT,
    Block,
    ChannelGroup,
    Extent,
    KernelCut,
    group_from_json,
    group_to_json,
)
from compressor.errors import ArchitectureError

__all__ = [
    "PRODUCT", "Architecture", "Block", "ChannelGroup", "Choice", "Extent", "Frozen", "KernelCut",
    "SearchLayer", "SearchSpace", "canonical", "choice_to_json",
]  # fmt: skip

Architecture: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, order=True)
class Choice:
    """What one option keeps. A field is None where the layer does not decide it.

    Attributes:
        channels: channels kept of the layer's group.
        kernel: edge of the kernel, in elements.
        kept: whether the layer's block is kept.
    """

    channels: int | None = None
    kernel: int | None = None
    kept: bool | None = None

    def __str__(self) -> str:
        parts = []
        if self.kept is not None:
            parts.append("kept" if self.kept else "dropped")
        if self.channels is not None:
            parts.append(f"{self.channels} ch")
        if self.kernel is not None:
            parts.append(f"k{self.kernel}")
        return ", ".join(parts)


@dataclass(frozen=True)
class SearchLayer:
    """One decision of the search.

    Attributes:
        name: path of the module that the decision is named after.
        modules: paths of all modules that change with it.
        choices: the options; the last is the original, the first is cheapest in every respect.
        group: what a change of channels touches, or None.
        kernel: what a change of kernel touches, or None.
        block: what is left out by the first of its two choices, or None.
    """

    name: str
    modules: tuple[str, ...]
    choices: tuple[Choice, ...]
    group: ChannelGroup | None = None
    kernel: KernelCut | None = None
    block: Block | None = None

    @property
    def touched(self) -> frozenset[str]:
        """Tensors and activations that shrink with its channels or its kernel."""
        names = {self.kernel.tensor} if self.kernel else set()
        if self.group:
            names |= {c.tensor for c in self.group.couplings}
            names |= {e.activation for e in self.group.extents}
        return frozenset(names)


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

    def dropped(self, architecture: Architecture) -> tuple[Block, ...]:
        """Blocks that are left out."""
        chosen = self.choices(architecture)
        return tuple(layer.block for layer, choice in chosen if layer.block and not choice.kept)

    @cached_property
    def hidden_by(self) -> tuple[tuple[int, ...], ...]:
        """For each layer the layers of the blocks that hold all that it touches; mostly none."""
        blocks = [(i, layer.block) for i, layer in enumerate(self.layers) if layer.block]
        found = []
        for layer in self.layers:
            homes = [{i for i, block in blocks if block.holds(name)} for name in layer.touched]
            found.append(tuple(sorted(set().union(*homes))) if homes and all(homes) else ())
        return tuple(found)

    def canonical(self, architecture: Architecture) -> Architecture:
        """The same network, with the original's option wherever a layer decides nothing.

        That is inside of blocks that are left out. Raises as `validate` does.
        """
        self.validate(architecture)
        return canonical(architecture, self.original, self.hidden_by)

    def removed(self, architecture: Architecture) -> dict[tuple[str, int], set[int]]:
        """Positions that go, for each `(tensor, dimension)` that shrinks.

        Several layers may cut the same dimension (a convolution after a concatenation). Tensors
        of blocks that are left out are not named.
        """
        dropped = self.dropped(architecture)
        cuts = self._positions(architecture, lambda group: group.couplings)
        return {key: gone for key, gone in cuts.items() if not _held(dropped, key[0])}

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
        dropped = self.dropped(architecture)
        found: dict[tuple[str, int], tuple[Extent, int]] = {}
        for layer, choice in self.choices(architecture):
            if layer.group is None or choice.channels is None:
                continue
            gone = len(layer.group.removed(choice.channels))
            for extent in layer.group.extents if gone else ():
                if _held(dropped, extent.activation):
                    continue
                key = (extent.activation, extent.dim)
                other, left = found.get(key, (extent, extent.shape[extent.dim]))
                found[key] = (extent.beside(other), left - gone * extent.per_unit)
        return found

    def kernels(self, architecture: Architecture) -> dict[str, int]:
        """New kernel edge for each convolution weight whose kernel shrinks."""
        dropped = self.dropped(architecture)
        return {
            layer.kernel.tensor: choice.kernel
            for layer, choice in self.choices(architecture)
            if layer.kernel and choice.kernel and choice.kernel != layer.kernel.kernel
            if not _held(dropped, layer.kernel.tensor)
        }

    def describe(self, architecture: Architecture) -> dict[str, str]:
        """Layer name to readable choice, for reports and error messages."""
        return {layer.name: str(choice) for layer, choice in self.outcome(architecture)}

    def outcome(self, architecture: Architecture) -> Iterator[tuple[SearchLayer, Choice]]:
        """Each layer with what comes of it: what lies inside of a dropped block is dropped too."""
        for (layer, choice), homes in zip(self.choices(architecture), self.hidden_by, strict=True):
            gone = homes and all(architecture[i] == 0 for i in homes)
            yield layer, Choice(kept=False) if gone else choice

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


def canonical(
    architecture: Architecture, original: Architecture, hidden_by: Sequence[Sequence[int]]
) -> Architecture:
    """`SearchSpace.canonical` from plain values: without `hidden_by` every network is its own."""
    if not any(hidden_by):
        return architecture
    return tuple(
        whole if layers and all(architecture[i] == 0 for i in layers) else option
        for option, whole, layers in zip(architecture, original, hidden_by, strict=True)
    )


def _held(blocks: Sequence[Block], name: str) -> bool:
    return any(block.holds(name) for block in blocks)


def choice_to_json(choice: Choice) -> list[int | bool | None]:
    """Channels and kernel; of a block besides whether it is kept."""
    shape = [choice.channels, choice.kernel]
    return shape if choice.kept is None else [*shape, choice.kept]


def _layer_to_json(layer: SearchLayer) -> dict[str, Any]:
    group, kernel, block = layer.group, layer.kernel, layer.block
    return {
        "name": layer.name,
        "modules": list(layer.modules),
        "choices": [choice_to_json(c) for c in layer.choices],
        "group": group and group_to_json(group),
        "kernel": kernel
        and {"tensor": kernel.tensor, "kernel": kernel.kernel, "spatial": kernel.spatial},
        **({"block": {"module": block.module, "products": list(block.products)}} if block else {}),
    }


def _layer_from_json(data: Any) -> SearchLayer:
    group, kernel, block = data["group"], data["kernel"], data.get("block")
    choices = tuple(_choice_from_json(*choice) for choice in data["choices"])
    kept = [choice.kept for choice in choices]
    if kept != ([False, True] if block else [None] * len(kept)):
        raise ValueError(f"a block is dropped or kept, and nothing else is, but got {kept!r}")
    return SearchLayer(
        name=str(data["name"]),
        modules=tuple(map(str, data["modules"])),
        choices=choices,
        group=None if group is None else group_from_json(group),
        kernel=None
        if kernel is None
        else KernelCut(str(kernel["tensor"]), int(kernel["kernel"]), int(kernel["spatial"])),
        block=None
        if block is None
        else Block(str(block["module"]), tuple(map(str, block["products"]))),
    )


def _choice_from_json(channels: Any, kernel: Any, kept: bool | None = None) -> Choice:
    return Choice(_amount(channels), _amount(kernel), kept)


def _amount(value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"a choice keeps at least 1, but got {value!r}")
    return value
