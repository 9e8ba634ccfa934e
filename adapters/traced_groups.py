"""Groups of channels from identities that were followed through a forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adapters.classes import NOTHING, Classes
from adapters.elements import Size, Statistic
from adapters.groups import Member, RawGroup
from adapters.identities import follow
from adapters.limits import USUAL, Limits
from compressor.coupling import Role
from compressor.errors import AdapterError
from compressor.space import Extent

Place: TypeAlias = tuple[str, int] | Size | Statistic  # of a tensor, or of an activation


def trace_groups(
    model: nn.Module, example: tuple[Tensor, ...], limits: Limits = USUAL
) -> list[RawGroup]:
    """All groups of a network; classes of channels that meet the same tensors are one group.

    Raises:
        AdapterError: the forward pass cannot be followed.
    """
    try:
        classes = follow(model, example, limits)
    except Exception as error:  # operators of every kind are run on identities
        raise AdapterError(f"its channels cannot be followed: {error}") from error
    reasons = {classes.root(one): why for one, why in classes.reasons.items()}
    groups: dict[tuple[str, object], list[Mapping[Place, list[int]]]] = {}
    for root, places in _members(classes).items():
        counts = frozenset((key, len(at)) for key, at in places.items())
        groups.setdefault((reasons.get(root, ""), counts), []).append(places)
    return [_group(classes, members, reason) for (reason, _), members in groups.items()]


def _members(classes: Classes) -> dict[int, dict[Place, list[int]]]:
    """For each class that some tensor meets, which positions of what go with it."""
    found: dict[int, dict[Place, list[int]]] = {}
    parts: list[tuple[Place, NDArray[np.int64]]] = [
        *((key, part.ids) for key, part in classes.slices.items()),
        *classes.sizes.items(), *classes.statistics.items(),
    ]  # fmt: skip
    for key, ids in parts:
        for place, root in enumerate(classes.roots(torch.from_numpy(ids)).tolist()):
            if root != NOTHING:
                found.setdefault(root, {}).setdefault(key, []).append(place)
    return {
        root: places
        for root, places in found.items()
        if any(isinstance(key, tuple) for key in places)
    }


def _group(classes: Classes, members: list[Mapping[Place, list[int]]], problem: str) -> RawGroup:
    keys = [key for key in members[0] if isinstance(key, tuple)]
    modules = tuple(dict.fromkeys(tensor.rpartition(".")[0] for tensor, _ in keys))
    makers = [key for key in keys if classes.slices[key].role is Role.PRODUCED]
    per_unit = max((len(members[0][key]) for key in makers), default=1)
    rest: list[tuple[int, ...]] = [()] * (per_unit - 1)

    def member(key: Place, tensor: str, dim: int, role: Role) -> Member:
        places = (p for one in members for p in (tuple(one[key]), *rest))
        return Member(tensor, dim, role, tuple(places))

    return RawGroup(
        modules=modules,
        width=len(members) * per_unit,
        members=tuple(member(key, *key, classes.slices[key].role) for key in keys),
        problem=problem,
        per_unit=per_unit,
        extents=tuple(
            Extent(
                key.activation, key.place, key.shape, len(at), key.written, key.whole, key.exported
            )
            for key, at in members[0].items()
            if isinstance(key, Size)
        ),
        statistics=tuple(
            member(key, key.operator, key.dim, Role.THROUGH)
            for key in members[0]
            if isinstance(key, Statistic)
        ),
    )
