"""Groups of channels that must be cut together, as plain data. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.coupling import Role
from compressor.errors import AdapterError
from compressor.space import Extent


@dataclass(frozen=True)
class Member:
    """One dimension of one tensor in a group.

    Attributes:
        tensor, dim, role: as in `compressor.coupling.Coupling`.
        positions: for each channel of the root, its positions along `dim`.
        period: channels `c` and `c + period` (in positions of this member before folding) can
            only go together, because a grouped convolution keeps its number of groups; 0 where
            every channel is free.
        folds: whether the tensor's dimension holds only one period (its own input channels).
    """

    tensor: str
    dim: int
    role: Role
    positions: tuple[tuple[int, ...], ...]
    period: int = 0
    folds: bool = False


@dataclass(frozen=True)
class RawGroup:
    """A dependency group as plain data, or the reason why it could not be read.

    Attributes:
        modules: paths of the modules that it touches.
        width: channels of its root.
        members: what each channel touches.
        problem: why it cannot be cut; empty where it can.
        per_unit: so many channels, one after the other, can only go together.
        extents: sizes of activations that shrink with it.
        statistics: operators that are taken over its channels, as members.
    """

    modules: tuple[str, ...]
    width: int
    members: tuple[Member, ...]
    problem: str = ""
    per_unit: int = 1
    extents: tuple[Extent, ...] = ()
    statistics: tuple[Member, ...] = ()


def units(group: RawGroup) -> list[list[int]]:
    """Channels that can only go together, as lists in ascending order.

    Grouped convolutions tie the same local channel of every group, and a group may say itself which
    channels are tied; everything else leaves channels free.

    Raises:
        AdapterError: the ties are uneven, so that the cost of a cut would depend on which
            channels go.
    """
    parent = [channel - channel % group.per_unit for channel in range(group.width)]

    def root(channel: int) -> int:
        while parent[channel] != channel:
            parent[channel] = parent[parent[channel]]
            channel = parent[channel]
        return channel

    for member in group.members:
        first: dict[int, int] = {}
        for channel, places in enumerate(member.positions):
            for place in places if member.period else ():
                other = first.setdefault(place % member.period, channel)
                parent[root(channel)] = root(other)
    found: dict[int, list[int]] = {}
    for channel in range(group.width):
        found.setdefault(root(channel), []).append(channel)
    if len({len(channels) for channels in found.values()}) > 1:
        raise AdapterError("grouped convolutions tie its channels into units of different size")
    return list(found.values())


def unit_positions(member: Member, unit_channels: Sequence[Sequence[int]]) -> list[list[int]]:
    """For each unit, its positions along the member's dimension.

    Raises:
        AdapterError: a unit would leave a grouped convolution with groups of different size.
    """
    result = []
    for channels in unit_channels:
        places = sorted(p for c in channels for p in member.positions[c])
        if member.period:
            _check_whole(member, places)
        if member.folds:
            places = sorted({p % member.period for p in places})
        result.append(places)
    return result


def _check_whole(member: Member, places: Sequence[int]) -> None:
    counts: dict[int, int] = {}
    for place in places:
        counts[place % member.period] = counts.get(place % member.period, 0) + 1
    if len(set(counts.values())) > 1:
        raise AdapterError(f"{member.tensor!r} is grouped and would keep groups of different size")
