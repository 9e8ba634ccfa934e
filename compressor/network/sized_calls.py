"""Operators that are told sizes: which, and what of their output each is the size of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

INFERRED = -1
"""Stands for the size that an operator works out from the others."""


@dataclass(frozen=True)
class SizedCall:
    """A call of an operator that is told sizes.

    Attributes:
        sizes: as given; `INFERRED` where the operator works one out.
        run: the call with other sizes in their place.
        whole: whether the sizes are all those of one tensor, not of parts of one.
        exported: whether graphs write the sizes out; the shapes of parameters say others.
        parts: of the operator's output: which tensor and dimension each size is of, and into how
            many equal parts it divides that dimension, None where it is the dimension's size.
    """

    sizes: tuple[int, ...]
    run: Callable[[Sequence[int]], Any]
    parts: Callable[[Any], list[tuple[Tensor, int, int | None]]]
    whole: bool = True
    exported: bool = True


def read_call(func: Any, args: Any, kwargs: Mapping[str, Any]) -> SizedCall | None:
    """The sizes that an operator is told; None for operators that are told none."""
    reader = _READERS.get(getattr(func, "__name__", ""))
    return reader(func, args, kwargs) if reader and args else None


def _given(args: Any, kwargs: Mapping[str, Any], place: int, *names: str) -> Any:
    """An argument by place or name."""
    if len(args) > place:
        return args[place]
    return next((kwargs[name] for name in names if name in kwargs), None)


def _numbers(sizes: Any) -> bool:
    # under torch.jit.trace they are tensors
    return bool(sizes) and all(isinstance(s, int | torch.SymInt | Tensor) for s in sizes)


def _shape(func: Any, args: Any, kwargs: Mapping[str, Any]) -> SizedCall | None:
    """`view`, `reshape` and `expand`, with sizes one by one or together."""
    source, *rest = args
    together = rest[0] if rest else kwargs.get("shape", kwargs.get("size"))
    sizes = tuple(together) if isinstance(together, list | tuple) else tuple(rest)
    if not _numbers(sizes):
        return None  # `view(dtype)`

    def parts(out: Tensor) -> list[tuple[Tensor, int, int | None]]:
        led = out.dim() - len(sizes)
        return [(out, led + i, None) for i in range(len(sizes))]

    return SizedCall(sizes, lambda new: func(source, tuple(new)), parts)


def _unflatten(func: Any, args: Any, kwargs: Mapping[str, Any]) -> SizedCall | None:
    source, dim = args[0], _given(args, kwargs, 1, "dim")
    sizes = _given(args, kwargs, 2, "sizes")
    if not isinstance(dim, int) or not _numbers(sizes):
        return None
    first = dim % source.dim()

    def parts(out: Tensor) -> list[tuple[Tensor, int, int | None]]:
        return [(out, first + i, None) for i in range(len(sizes))]

    return SizedCall(tuple(sizes), lambda new: func(source, dim, tuple(new)), parts)


def _split(func: Any, args: Any, kwargs: Mapping[str, Any]) -> SizedCall | None:
    source, dim = args[0], _given(args, kwargs, 2, "dim") or 0
    sizes = _given(args, kwargs, 1, "split_size", "split_size_or_sections", "split_sizes")
    if isinstance(sizes, int):
        return SizedCall(
            (sizes,),
            lambda new: func(source, new[0], dim=dim),
            lambda out: [(out[0], dim, None)],
            whole=False,
        )
    if not _numbers(sizes):
        return None
    return SizedCall(
        tuple(sizes),
        lambda new: func(source, list(new), dim=dim),
        lambda out: [(one, dim, None) for one in out],
        whole=False,
    )


def _group_norm(func: Any, args: Any, kwargs: Mapping[str, Any]) -> SizedCall | None:
    groups = _given(args, kwargs, 1, "num_groups")
    if not isinstance(groups, int):
        return None
    others = {k: v for k, v in kwargs.items() if k != "num_groups"}
    return SizedCall(
        (groups,),
        lambda new: func(args[0], new[0], *args[2:], **others),
        lambda out: [(out, 1, groups)],
        whole=False,
    )


def _normalised(func: Any, args: Any, kwargs: Mapping[str, Any]) -> SizedCall | None:
    """`layer_norm` and `rms_norm`, which are told the sizes that they normalise over."""
    sizes = _given(args, kwargs, 1, "normalized_shape")
    if not isinstance(sizes, list | tuple) or not _numbers(sizes):
        return None
    others = {k: v for k, v in kwargs.items() if k != "normalized_shape"}
    return SizedCall(
        tuple(sizes),
        lambda new: func(args[0], tuple(new), *args[2:], **others),
        lambda out: [(out, out.dim() - len(sizes) + i, None) for i in range(len(sizes))],
        exported=False,
    )


_READERS: Mapping[str, Callable[[Any, Any, Mapping[str, Any]], SizedCall | None]] = {
    "view": _shape,
    "reshape": _shape,
    "expand": _shape,
    "unflatten": _unflatten,
    "split": _split,
    "group_norm": _group_norm,
    "layer_norm": _normalised,
    "rms_norm": _normalised,
}
