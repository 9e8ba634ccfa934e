"""Operators that only move elements: run on the identities as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from adapters.follower import Follower

MOVED = {
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "expand", "slice", "select",
    "split", "split_with_sizes", "unbind", "squeeze", "unsqueeze", "clone", "alias", "detach",
    "roll", "flip", "repeat", "index_select", "index", "_to_copy", "contiguous", "lift_fresh",
    "narrow", "unfold", "_reshape_alias", "view_copy", "expand_copy",
}  # fmt: skip
_PARTS = {"slice", "select", "unbind", "narrow", "index_select", "index"}
_TURNS = {"t", "transpose", "permute", "unsqueeze", "clone", "alias", "detach", "contiguous"}
_SPLITS = {"view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy"}

_OF_VALUES = ("dtype", "layout", "device", "pin_memory")  # would change identities as numbers


def move(
    follower: Follower, func: Any, name: str, arguments: Mapping[str, Any], args: Any, out: Any
) -> None:
    """Notes what comes out of an operator; what is cut at fixed positions is kept.

    Args:
        follower: what is known.
        func: the operator.
        name: what it is called without its overload.
        arguments: of the operator, by name; `args` by place.
        args: the same by place.
        out: what it returned.
    """
    source, outs = args[0], tree_leaves(out)
    others = {k: v for k, v in list(arguments.items())[len(args) :] if k not in _OF_VALUES}
    weight = follower.weight(source)
    if weight is not None:
        all_places = tree_leaves(_moved(func, name, weight.places, args, others, out))
        for one, places in zip(outs, all_places, strict=True):
            follower.note_weight(one, replace(weight, places=places))
        return
    results: list[list[Tensor]] = [[] for _ in outs]
    for factor in follower.factors(source):
        whole = _kept_apart(follower, name, factor, source, arguments, outs)
        if whole is None:
            continue
        if name in _SPLITS:
            moved = _reshaped(whole, source.shape, out.shape)
            for _, dims in _runs(source.shape, out.shape):
                follower.rectangle(follower.small(moved), dims)
        elif name in _TURNS:
            moved = _moved(func, name, whole, args, others, out)
        else:
            moved = _moved(func, name, whole.expand(source.shape), args, others, out)
        for found, one in zip(results, tree_leaves(moved), strict=True):
            found.append(one)
    for one, found in zip(outs, results, strict=True):
        follower.note(one, found)


def _kept_apart(
    follower: Follower,
    name: str,
    factor: Tensor,
    source: Tensor,
    arguments: Mapping[str, Any],
    outs: list[Tensor],
) -> Tensor | None:
    """The identities, tied as parts of a dimension ask for; None where they cannot be cut."""
    if name in _PARTS:
        cut = [
            d
            for d in _changing(factor, name, arguments)
            if any(o.dim() != source.dim() or o.shape[d] != source.shape[d] for o in outs)
        ]
        return follower.mixed(factor, cut, "it is cut at fixed positions")
    if name == "split":
        size, dim = arguments["split_size"], arguments.get("dim", 0) % source.dim()
        if factor.shape[dim] > 1 and source.shape[dim] % size:
            follower.classes.keep(factor, "it is split into parts of different size")
            return None
        if factor.shape[dim] > 1:  # parts of equal size lose the same places
            follower.classes.tie_along(torch.stack(torch.split(factor, size, dim)), 0)
    return factor


def _moved(
    func: Any, name: str, ids: Tensor, args: Any, others: Mapping[str, Any], out: Any
) -> Any:
    """The operator on identities, which need not lie in memory as the values do."""
    if name in _SPLITS:
        return ids.reshape(out.shape)
    here, named = tree_map(_here, (tuple(args[1:]), dict(others)))
    return func(ids, *here, **named)


def _reshaped(factor: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Identities after a reshape, still with size 1 where nothing changes."""
    shape = list(factor.shape)
    target = [1] * len(after)
    for old, new in _runs(before, after):
        if any(factor.shape[d] > 1 for d in old):
            for d in old:
                shape[d] = before[d]
            for d in new:
                target[d] = after[d]
    return factor.expand(shape).reshape(target)


def _here(value: Any) -> Any:
    """Identities are on the CPU, wherever the network is."""
    return value.cpu() if isinstance(value, Tensor) else value


def _changing(factor: Tensor, name: str, arguments: Mapping[str, Any]) -> list[int]:
    """Dimensions that an operator cuts and along which identities change."""
    if name == "index":
        places = enumerate(arguments["indices"])
        return [d for d, at in places if at is not None and factor.shape[d] > 1]
    dim = arguments.get("dim", 0) % factor.dim()
    return [dim] if factor.shape[dim] > 1 else []


def _runs(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Dimensions before and after a reshape, in runs that hold the same elements."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = 1, 1
        old: list[int] = []
        new: list[int] = []
        if i < len(before):
            left, old, i = before[i], [i], i + 1
        if j < len(after):
            right, new, j = after[j], [j], j + 1
        while left != right:
            if left < right and i < len(before):
                left, old, i = left * before[i], [*old, i], i + 1
            elif j < len(after):
                right, new, j = right * after[j], [*new, j], j + 1
            else:
                break
        runs.append((old, new))
    return runs
