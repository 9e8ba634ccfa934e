"""Groups of channels from identities that were followed through a forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from adapters.classes import NOTHING, Classes
from adapters.groups import Member, RawGroup
from adapters.identities import follow
from compressor.coupling import Role
from compressor.errors import AdapterError

Slice: TypeAlias = tuple[str, int]


def trace_groups(model: nn.Module, example: tuple[Tensor, ...]) -> list[RawGroup]:
    """All groups of a network; classes of channels that meet the same tensors are one group.

    Raises:
        AdapterError: the forward pass cannot be followed.
    """
    try:
        classes = follow(model, example)
    except Exception as error:  # operators of every kind are run on identities
        raise AdapterError(f"its channels cannot be followed: {error}") from error
    reasons = {_root(classes, one): why for one, why in classes.reasons.items()}
    groups: dict[tuple[object, ...], list[Mapping[Slice, list[int]]]] = {}
    for root, places in _members(classes).items():
        counts = tuple((key, len(at)) for key, at in sorted(places.items()))
        groups.setdefault((reasons.get(root, ""), *counts), []).append(places)
    return [_group(classes, members, str(key[0])) for key, members in groups.items()]


def _root(classes: Classes, one: int) -> int:
    return int(classes.roots(torch.tensor(one)))


def _members(classes: Classes) -> dict[int, dict[Slice, list[int]]]:
    """For each class, which positions of which tensors go with it."""
    found: dict[int, dict[Slice, list[int]]] = {}
    for key, part in classes.slices.items():
        for place, root in enumerate(classes.roots(torch.from_numpy(part.ids)).tolist()):
            if root != NOTHING:
                found.setdefault(root, {}).setdefault(key, []).append(place)
    return found


def _group(classes: Classes, members: list[Mapping[Slice, list[int]]], problem: str) -> RawGroup:
    keys = list(members[0])
    modules = tuple(dict.fromkeys(tensor.rpartition(".")[0] for tensor, _ in keys))
    makers = [key for key in keys if classes.slices[key].role is Role.PRODUCED]
    per_unit = max((len(members[0][key]) for key in makers), default=1)
    rest: list[tuple[int, ...]] = [()] * (per_unit - 1)
    return RawGroup(
        modules=modules,
        width=len(members) * per_unit,
        members=tuple(
            Member(
                tensor, dim, classes.slices[tensor, dim].role,
                tuple(p for one in members for p in (tuple(one[tensor, dim]), *rest)),
            )
            for tensor, dim in keys
        ),
        problem=problem,
        per_unit=per_unit,
    )  # fmt: skip
