"""Operators that only move elements: run on the identities as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from adapters.follower import Follower, Weight, constant

MOVED = {
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "expand", "slice", "select",
    "split", "split_with_sizes", "unbind", "squeeze", "unsqueeze", "clone", "alias", "detach",
    "roll", "flip", "repeat", "index_select", "index", "_to_copy", "contiguous", "lift_fresh",
    "narrow", "unfold", "_reshape_alias", "view_copy", "expand_copy",
}  # fmt: skip
_PARTS = {"slice", "select", "unbind", "narrow", "split_with_sizes", "index_select", "index"}
_SPLITS = {"view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy"}


def move(follower: Follower, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> None:
    """Notes what comes out of an operator; what is cut at fixed positions is kept."""
    source = args[0]
    weight = follower.weight(source)
    if weight is not None:
        moved = _moved(func, name, weight.places, args, kwargs, out)
        for one, places in zip(tree_leaves(out), tree_leaves(moved), strict=True):
            follower.note_weight(one, Weight(weight.name, weight.shape, places))
        return
    results: list[list[Tensor]] = [[] for _ in tree_leaves(out)]
    for factor in follower.factors(source):
        if name in _PARTS and any(
            o.shape[d] != source.shape[d] if o.dim() == source.dim() else True
            for o in tree_leaves(out)
            for d in _changing(factor, name, args)
        ):
            follower.classes.keep(factor, "it is cut at fixed positions")
            continue
        if name == "split":
            _tie_parts(follower, factor, source, args, kwargs)
        if name in _SPLITS:
            _tie_outer(follower, factor, source.shape, out.shape)
        moved = _moved(func, name, factor.expand(source.shape), args, kwargs, out)
        for found, one in zip(results, tree_leaves(moved), strict=True):
            found.append(one)
    for one, found in zip(tree_leaves(out), results, strict=True):
        follower.note(one, found)


def _tie_parts(follower: Follower, factor: Tensor, source: Tensor, args: Any, kwargs: Any) -> None:
    """Parts of equal size lose the same places, so that they stay of equal size."""
    dim = (kwargs.get("dim", args[2] if len(args) > 2 else 0)) % source.dim()
    size = args[1]
    if factor.shape[dim] == 1:
        return
    if source.shape[dim] % size:
        follower.classes.keep(factor, "it is split into parts of different size")
        return
    parts = torch.split(factor, size, dim)
    for part in parts[1:]:
        follower.classes.tie(parts[0], part)


def _tie_outer(
    follower: Follower, factor: Tensor, before: Sequence[int], after: Sequence[int]
) -> None:
    """Where a dimension becomes several, the innermost that changes is the one that shrinks."""
    moved = factor.expand(before).reshape(after)
    for dims in _groups(before, after):
        changing = [d for d in dims if after[d] > 1 and not constant(moved, d)]
        for dim in changing[:-1]:
            follower.classes.tie(moved, moved.narrow(dim, 0, 1))


def _moved(func: Any, name: str, ids: Tensor, args: Any, kwargs: Any, out: Any) -> Any:
    """The operator on identities, which need not lie in memory as the values do."""
    if name in _SPLITS:
        return ids.reshape(out.shape)
    return func(ids, *args[1:], **_typeless(kwargs))


def _typeless(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Without what would turn identities into other numbers."""
    return {k: v for k, v in kwargs.items() if k not in ("dtype", "layout", "device", "pin_memory")}


def _changing(factor: Tensor, name: str, args: Any) -> list[int]:
    """Dimensions that an operator cuts and along which identities change."""
    if name == "index":
        return [d for d, at in enumerate(args[1]) if at is not None and factor.shape[d] > 1]
    dim = (
        args[2] if name == "split_with_sizes" and len(args) > 2 else args[1] if len(args) > 1 else 0
    )
    if name == "split_with_sizes" and len(args) <= 2:
        dim = 0
    dim = dim % factor.dim()
    return [dim] if factor.shape[dim] > 1 else []


def _groups(before: Sequence[int], after: Sequence[int]) -> list[list[int]]:
    """Dimensions after a reshape, in runs that hold the same elements as a run before it."""
    runs: list[list[int]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right, dims = 1, 1, []
        if i < len(before):
            left, i = before[i], i + 1
        if j < len(after):
            right, dims, j = after[j], [j], j + 1
        while left != right:
            if left < right and i < len(before):
                left, i = left * before[i], i + 1
            elif j < len(after):
                right, dims, j = right * after[j], [*dims, j], j + 1
            else:
                break
        runs.append(dims)
    return runs
