"""The adapter for any network that autograd can trace."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from adapters.blocks import Blocks, find_blocks
from adapters.dependency_groups import read_groups
from adapters.forward_pass import Run, Told, read_run, settled, told_sizes
from adapters.groups import RawGroup, unit_positions, units
from adapters.kernels import kernel_cut, kernel_layer, with_kernel
from adapters.limits import USUAL, Limits
from adapters.traced_groups import trace_groups
from compressor.coupling import Coupling, IndexMap, Role
from compressor.errors import AdapterError
from compressor.network.proof import Probe
from compressor.network.structure import named_tensors
from compressor.refit.ranking import magnitude_order
from compressor.space import (
    ChannelGroup,
    Choice,
    Extent,
    Frozen,
    SearchLayer,
    SearchSpace,
)


@dataclass(frozen=True)
class GenericAdapter:
    """One search layer for each dependency group, and kernels of k x k convolutions.

    Attributes:
        divisor: widths are multiples of this, or of a smaller power of two in layers that are
            too narrow to offer four such widths.
        least: smallest width in multiples of the divisor, as a share of the original.
        stub: one width below those, as a share of the original, in multiples of half the divisor:
            nearly drops what the layer does, as deep networks allow in some places.
        most_widths: wide layers take a multiple of the divisor so that no more are offered.
        limits: of time and memory for following the channels; beyond them only kernels are choices.
        blocks: whether residual blocks may be left out as a whole, each a search layer.
    """

    divisor: int = 8
    least: float = 0.25
    stub: float = 0.125
    most_widths: int = 16
    limits: Limits = USUAL
    blocks: bool = False

    def dropping_blocks(self) -> GenericAdapter:
        """See `compressor.network.adapter.DropsBlocks`."""
        return replace(self, blocks=True)

    def read(self, model: nn.Module, example: tuple[Tensor, ...]) -> SearchSpace:
        """See `compressor.network.adapter.Adapter`."""
        run = read_run(model, example)
        order = run.order
        reading = _Reading(model, order)
        try:
            groups: list[RawGroup] | None = sorted(
                _groups(model, example, self.limits), key=lambda g: _place(g, order)
            )
        except AdapterError as error:
            # Kernels can still be cropped: they change no width and need no dependency graph.
            reading.frozen.append(Frozen("all channels", str(error)))
            groups = None
        for group in groups or ():
            reading.add_group(group, self)
        if run.sizes:
            layers = list(reading.layers())
            told = told_sizes(model, example, run, layers)
            reading.settle_extents(told, run)
            if told.derived:
                reading.settle_choices(told.derived, Probe.make(model, example))
        reading.add_kernels()
        reading.add_unreached(traced=groups is not None)
        if self.blocks:
            reading.add_blocks(find_blocks(model, example))
        return SearchSpace(tuple(reading.layers()), tuple(reading.frozen))

    def widths(self, width: int, per_unit: int) -> list[int]:
        """Widths to choose from, ascending; the last is the original."""
        divisor = self.divisor
        # few wide units, as heads of 57 channels, are choices at any width
        while divisor > 1 and (width < 4 * divisor or width <= math.lcm(divisor, per_unit)):
            divisor //= 2
        step = math.lcm(divisor, per_unit)
        while (width - width * self.least) / step >= self.most_widths:
            step *= 2
        first = max(1, math.ceil(width * self.least / step)) * step
        half = math.lcm(max(1, divisor // 2), per_unit)
        stub = max(1, math.ceil(width * self.stub / half)) * half
        return [*([stub] if stub < min(first, width) else []), *range(first, width, step), width]


class _Reading:
    """Collects search layers and reasons while one network is read."""

    def __init__(self, model: nn.Module, order: Mapping[str, int]) -> None:
        self.frozen: list[Frozen] = []
        self._order = order
        self._modules = dict(model.named_modules())
        self._tensors = named_tensors(model)
        self._shared = _shared_names(model)
        self._taken: dict[tuple[str, int], set[int]] = {}
        self._found: dict[str, SearchLayer] = {}
        self._seen: set[str] = set()

    def add_group(self, group: RawGroup, adapter: GenericAdapter) -> None:
        """Turns a group into a search layer, or freezes it."""
        self._seen.update(group.modules)
        name = min(_makers(group) or group.modules, key=lambda n: self._order.get(n, 1 << 30))
        name = name or group.members[0].tensor  # of the network itself
        try:
            channels = self._channels(group)
            widths = _several(adapter.widths(group.width, channels.per_unit))
        except AdapterError as error:
            self.frozen.append(Frozen(name, str(error)))
            return
        for coupling in channels.couplings:
            taken = self._taken.setdefault((coupling.tensor, coupling.dim), set())
            taken.update(coupling.index.positions(range(len(channels.order))))
        modules = sorted(set(group.modules), key=lambda n: self._order.get(n, 1 << 30))
        choices = tuple(Choice(channels=w) for w in widths)
        several = sum(other.partition(":")[0] == name for other in self._found)
        name = f"{name}:{several + 1}" if several else name  # parts of one module's channels
        self._found[name] = SearchLayer(name, tuple(modules), choices, group=channels)

    def settle_extents(self, told: Told, run: Run) -> None:
        """Leaves to the code the sizes that it gets right, and holds those that it gets wrong."""
        for name, layer in self._found.items():
            group = layer.group
            if group is None:
                continue
            own = {(e.activation, e.dim): e for e in group.extents}
            extents = [
                replace(e, written=e.written and key not in told.right) for key, e in own.items()
            ]
            for activation, dim in sorted(told.derived.get(name, frozenset()) - own.keys()):
                shape = tuple(max(1, size) for size in run.sizes[activation])
                held = Extent(activation, dim, shape, per_unit=0, written=True, exported=False)
                extents.append(held)
            self._found[name] = replace(layer, group=replace(group, extents=tuple(extents)))

    def settle_choices(self, names: Iterable[str], probe: Probe) -> None:
        """Leaves the choices with which the network runs; freezes layers that are wrong in them.

        `verify` freezes a layer that runs with none of them.
        """
        choices, wrong = settled(probe, [self._found[name] for name in names])
        for name, reason in wrong.items():
            self.frozen.append(Frozen(name, reason))
            del self._found[name]
        for name, several in choices.items():
            if len(several) > 1:
                self._found[name] = replace(self._found[name], choices=several)

    def add_kernels(self) -> None:
        """Adds kernel choices to the layer of the convolution's channels, if it is the only one."""
        cuts = {
            name: cut
            for name, module in self._modules.items()
            if name in self._order and (cut := kernel_cut(name, module))
            if cut.tensor in self._tensors and cut.tensor not in self._shared
        }
        homes = {name: self._home(name) for name in cuts}
        for name, cut in cuts.items():
            home = homes[name]
            if home and list(homes.values()).count(home) == 1:
                self._found[home] = with_kernel(self._found[home], cut)
            else:
                key = name if name not in self._found else f"{name}:kernel"
                self._found[key] = kernel_layer(key, name, cut)

    def add_blocks(self, blocks: Blocks) -> None:
        """Adds the choice of leaving a block out, before the choices inside of it."""
        self.frozen += blocks.frozen
        for layer in blocks.layers:
            key = layer.name if layer.name not in self._found else f"{layer.name}:block"
            self._found[key] = replace(layer, name=key)

    def add_unreached(self, *, traced: bool) -> None:
        """Names the convolutions and linear layers that no group mentions, and why.

        Args:
            traced: whether there are groups; without them the one reason for all is known.
        """
        for name, module in self._modules.items():
            if not isinstance(module, _ConvNd | nn.Linear) or name in self._seen:
                continue
            if name not in self._order:
                why = (
                    "is not called in evaluation mode on the example input: it is unused, or its "
                    "parent reads its weights"
                )
                self.frozen.append(Frozen(name, why))
            elif traced:
                self.frozen.append(Frozen(name, "was not reached by the traced forward pass"))

    def layers(self) -> Iterator[SearchLayer]:
        """Search layers in forward order."""
        first = {
            name: min(self._order.get(m, 1 << 30) for m in (name.partition(":")[0], name))
            for name in self._found
        }
        for name in sorted(self._found, key=lambda n: (first[n], n)):
            yield self._found[name]

    def _channels(self, group: RawGroup) -> ChannelGroup:
        if group.problem:
            raise AdapterError(group.problem)
        tied = units(group)
        if len(tied) < 2:
            raise AdapterError("all its channels can only be removed together")
        if not any(m.role is Role.CONSUMED for m in group.members):
            raise AdapterError("nothing in the network reads its channels: they are its output")
        couplings = self._couplings(group, tied)
        order = magnitude_order(self._tensors, couplings, len(tied))
        statistics = tuple(
            Coupling(m.tensor, m.dim, m.role, IndexMap.from_positions(unit_positions(m, tied)))
            for m in group.statistics
        )
        return ChannelGroup(group.width, len(tied[0]), order, couplings, group.extents, statistics)

    def _couplings(self, group: RawGroup, tied: Sequence[Sequence[int]]) -> tuple[Coupling, ...]:
        merged: dict[tuple[str, int], tuple[Role, list[set[int]]]] = {}
        for member in group.members:
            self._check_tensor(member.tensor, member.dim)
            _, places = merged.setdefault(
                (member.tensor, member.dim), (member.role, [set() for _ in tied])
            )
            for place, more in zip(places, unit_positions(member, tied), strict=True):
                place.update(more)
        found = []
        for (tensor, dim), (role, positions) in merged.items():
            self._check_free(tensor, dim, positions)
            index = IndexMap.from_positions([sorted(p) for p in positions])
            found.append(Coupling(tensor, dim, role, index))
        return tuple(found)

    def _check_tensor(self, name: str, dim: int) -> None:
        tensor = self._tensors.get(name)
        if tensor is None or dim >= tensor.dim():
            raise AdapterError(f"{name!r} is not a plain parameter of the network")
        if name in self._shared:
            raise AdapterError(f"{name!r} is the same tensor as {self._shared[name]!r}")

    def _check_free(self, name: str, dim: int, positions: Sequence[set[int]]) -> None:
        places = set().union(*positions)
        if sum(map(len, positions)) != len(places):
            raise AdapterError(f"two of its channels share a position of {name!r}")
        if places and max(places) >= self._tensors[name].shape[dim]:
            raise AdapterError(
                f"its channels reach position {max(places)} of {name!r}, which has only "
                f"{self._tensors[name].shape[dim]}"
            )
        if places & self._taken.get((name, dim), set()):
            raise AdapterError(f"another search layer already decides these channels of {name!r}")

    def _home(self, conv: str) -> str:
        """The layer whose channels this convolution makes or passes through."""
        for name, layer in self._found.items():
            for coupling in layer.group.couplings if layer.group else ():
                if coupling.tensor == f"{conv}.weight" and coupling.role is not Role.CONSUMED:
                    return name
        return ""


def _groups(model: nn.Module, example: tuple[Tensor, ...], limits: Limits) -> list[RawGroup]:
    """Groups as followed through a forward pass; torch-pruning's where that fails."""
    try:
        return trace_groups(model, example, limits)
    except AdapterError as error:
        try:
            return read_groups(model, example, limits)
        except AdapterError as other:
            raise AdapterError(f"{error}; and {other}") from other


def _makers(group: RawGroup) -> list[str]:
    return [m.tensor.rpartition(".")[0] for m in group.members if m.role is Role.PRODUCED]


def _place(group: RawGroup, order: Mapping[str, int]) -> int:
    return min((order.get(n, 1 << 30) for n in _makers(group) or group.modules), default=1 << 30)


def _several(widths: list[int]) -> list[int]:
    if len(widths) < 2:
        raise AdapterError(f"it has only {widths[-1]} channels, too few to choose from")
    return widths


def _shared_names(model: nn.Module) -> dict[str, str]:
    """Parameters that several modules hold under names of their own."""
    first: dict[int, str] = {}
    shared: dict[str, str] = {}
    for path, module in model.named_modules():
        for leaf, tensor in module.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            other = first.setdefault(id(tensor), name)
            if other != name:
                shared[name], shared[other] = other, name
    return shared
