"""Operators that take a mean, or another statistic, over channels; and the same over fewer of them.

A network that lost channels takes the means of its normalisations over those that are left. The
masked original must do the same, or it would be another function: the removed channels are left
out of its statistics as well. An operator is known by its kind and its place among those of its
kind in a forward pass: `mean@3`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.errors import ArchitectureError
from compressor.network.counting import plain_attention

Gone: TypeAlias = Mapping[tuple[str, int], Collection[int]]
"""Positions that are left out, by operator and dimension of what it reads."""

REDUCTIONS = frozenset({
    "mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "linalg_vector_norm",
    "logsumexp",
})  # fmt: skip
"""Operators whose output has no channels left."""


def takes_statistics(func: Any, args: Sequence[Any]) -> bool:
    """Whether an operator is one of those that can leave channels out."""
    name = func.overloadpacket.__name__
    if name == "native_group_norm":
        return bool(args[6] == 1)  # more groups have statistics of their own each
    return name in REDUCTIONS or name in _NORMALISATIONS


class Numbers:
    """Names for operators in the order in which they run."""

    def __init__(self) -> None:
        """Nothing ran yet."""
        self._calls: Counter[str] = Counter()

    def name(self, func: Any) -> str:
        """The name of the operator that runs now."""
        kind = func.overloadpacket.__name__
        self._calls[kind] += 1
        return f"{kind}@{self._calls[kind]}"


def leave_out(model: nn.Module, gone: Gone) -> None:
    """Makes every forward pass of a network leave channels out of statistics, from now on."""
    if gone:
        _hook(model, gone)


@contextmanager
def leaving_out(model: nn.Module, gone: Gone) -> Iterator[None]:
    """The same inside the block."""
    handles = _hook(model, gone) if gone else ()
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(model: nn.Module, gone: Gone) -> tuple[Any, Any]:
    running: list[ExitStack] = []

    def enter(*_: object) -> None:
        stack = ExitStack()
        # in the order of operators in which the network was read
        stack.enter_context(plain_attention())
        stack.enter_context(_LeavingOut(gone))
        running.append(stack)

    def leave(*_: object) -> None:
        running.pop().close()

    return (
        model.register_forward_pre_hook(enter),
        model.register_forward_hook(leave, always_call=True),
    )


class _LeavingOut(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Runs statistics on what is left of the channels."""

    def __init__(self, gone: Gone) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._gone: dict[str, dict[int, Collection[int]]] = {}
        for (name, dim), positions in gone.items():
            self._gone.setdefault(name, {})[dim] = positions
        self._numbers = Numbers()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # then what consists of others comes as a whole
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        if not takes_statistics(func, args):
            return func(*args, **kwargs)
        name = self._numbers.name(func)
        kept = {
            dim: _kept(name, args[0], dim, gone) for dim, gone in self._gone.get(name, {}).items()
        }
        if not kept:
            return func(*args, **kwargs)
        run = _NORMALISATIONS.get(func.overloadpacket.__name__, _reduce)
        return run(func, args, kwargs, kept)


_Kept: TypeAlias = Mapping[int, Tensor]


def _kept(name: str, source: Tensor, dim: int, gone: Collection[int]) -> Tensor:
    if dim >= source.dim() or max(gone) >= source.shape[dim]:
        raise ArchitectureError(
            f"the search space leaves position {max(gone)} of dimension {dim} out of {name!r}, "
            f"which reads {list(source.shape)} in this model; use the model that the space was "
            "read from, with the same inputs"
        )
    places = [i for i in range(source.shape[dim]) if i not in gone]
    return torch.tensor(places, dtype=torch.long, device=source.device)


def _reduce(func: Any, args: Any, kwargs: Any, kept: _Kept) -> Any:
    return func(_picked(args[0], kept), *args[1:], **kwargs)


def _softmax(func: Any, args: Any, kwargs: Any, kept: _Kept) -> Tensor:
    return _spread(func(_picked(args[0], kept), *args[1:], **kwargs), args[0].shape, kept)


def _layer_norm(func: Any, args: Any, kwargs: Any, kept: _Kept) -> Any:
    """`native_layer_norm` and `_fused_rms_norm`: the input, what it normalises over, parameters."""
    source, shape, *rest = args
    first = source.dim() - len(shape)
    small = _picked(source, kept)
    inner = {dim - first: places for dim, places in kept.items()}
    others = [_picked(t, inner) if isinstance(t, Tensor) else t for t in rest]
    out, *statistics = func(small, small.shape[first:], *others, **kwargs)
    return _spread(out, source.shape, kept), *statistics


def _group_norm(func: Any, args: Any, kwargs: Any, kept: _Kept) -> Any:
    source, weight, bias, batch, _, area, groups, eps = args
    small = _picked(source, kept)
    vectors = [None if t is None else _picked(t, {0: kept[1]}) for t in (weight, bias)]
    out, *statistics = func(
        small, *vectors, batch, small.shape[1], area, groups, eps, **kwargs
    )  # fmt: skip
    return _spread(out, source.shape, kept), *statistics


_NORMALISATIONS: Mapping[str, Callable[[Any, Any, Any, _Kept], Any]] = {
    "_softmax": _softmax,
    "_log_softmax": _softmax,
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _layer_norm,
    "native_group_norm": _group_norm,
}


def _picked(tensor: Tensor, kept: _Kept) -> Tensor:
    for dim, places in kept.items():
        tensor = tensor.index_select(dim, places)
    return tensor.contiguous()


def _spread(small: Tensor, shape: Sequence[int], kept: _Kept) -> Tensor:
    """In the places of the original, with zeros for what is left out."""
    for dim, places in kept.items():
        whole = small.new_zeros([*small.shape[:dim], shape[dim], *small.shape[dim + 1 :]])
        small = whole.index_copy(dim, places, small)
    return small
