"""What operators make of identities, one rule for each kind of operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from adapters.elements import led, overlap, own_sizes
from adapters.follower import Follower
from adapters.products import addmm, convolution, of_channels, product
from compressor.coupling import Role
from compressor.network.statistics import REDUCTIONS

_SPATIAL = {
    "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "adaptive_max_pool2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
    "upsample_nearest3d", "upsample_trilinear3d", "reflection_pad1d", "reflection_pad2d",
    "replication_pad2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
}  # fmt: skip
_ALONG = REDUCTIONS | {
    "max", "min", "prod", "argmax", "any", "all", "_softmax", "_log_softmax", "softmax",
    "log_softmax", "_safe_softmax", "cumsum", "cumprod", "cummax", "cummin", "sort", "logcumsumexp",
    "_fft_c2c", "_fft_r2c", "_fft_c2r",
}  # fmt: skip
_NORMALISED = "a normalisation over channels mixes them"
_CREATED = {
    "empty", "zeros", "ones", "full", "arange", "new_zeros", "new_ones", "new_empty", "new_full",
    "zeros_like", "ones_like", "empty_like", "full_like", "scalar_tensor", "linspace", "rand",
    "randn", "_local_scalar_dense",
}  # fmt: skip
_WRITES = {"index_put_", "_index_put_impl_", "index_copy_", "index_add_", "scatter_"}

Rule: TypeAlias = Callable[[Follower, Any, Any, Any], None]


def apply(follower: Follower, name: str, arguments: Mapping[str, Any], args: Any, out: Any) -> None:
    """Notes what comes out of an operator.

    Args:
        follower: what is known.
        name: of the operator, without its overload.
        arguments: of the operator, by name.
        args: the same by place.
        out: what it returned.
    """
    rule = _RULES.get(name)
    if rule is not None:
        rule(follower, args, arguments, out)
    elif name in _SPATIAL:
        _spatial(follower, args, out)
    elif name in _ALONG:
        _along(follower, name, args[0], arguments.get("dim"), out)
    elif name == "copy_":
        _write(follower, args[0], args[1])
    elif name in _WRITES:
        for tensor in args:
            follower.keep(tensor, "it is written into another tensor")
    elif name not in _CREATED:
        _each(follower, name, arguments, out)


def _unmixed(follower: Follower, source: Tensor, dims: Sequence[int], reason: str) -> list[Tensor]:
    """What a tensor stands for, after an operator mixed what lies along some dimensions."""
    found = (follower.mixed(f, dims, reason) for f in follower.factors(source))
    return [f for f in found if f is not None]


def _spatial(follower: Follower, args: Any, out: Any) -> None:
    """Operators over the dimensions behind the channels."""
    reason = "its positions are mixed by pooling or resizing"
    found = _unmixed(follower, args[0], range(2, args[0].dim()), reason)
    for one in tree_leaves(out):
        follower.note(one, found)


def _along(follower: Follower, name: str, source: Tensor, given: Any, out: Any) -> None:
    """Reductions, and operators that normalise, along some dimensions."""
    named = [given] if isinstance(given, int) else list(given or range(source.dim()))
    dims = [d % max(source.dim(), 1) for d in named]
    reason = f"{name.strip('_')} mixes its channels"
    every = (follower.averaged(f, dims, reason) for f in follower.factors(source))
    found = [f for f in every if f is not None]
    if name in REDUCTIONS:
        found = [f for f in found if all(f.shape[d] == 1 for d in dims)]
    for one in tree_leaves(out):
        if isinstance(one, Tensor) and one.dim() < source.dim():
            gone = sorted(dims, reverse=True)
            follower.note(one, [_without(f, gone) for f in found])
        else:
            follower.note(one, found)


def _write(follower: Follower, target: Tensor, source: Tensor) -> None:
    """What is written into a part of a tensor is in the whole of it, where that part is as wide."""
    whole = target if target._base is None else target._base
    found = list(follower.factors(whole))
    for factor in led(follower.factors(source), target.dim()):
        wide = [d for d, size in enumerate(factor.shape) if size > 1]
        if whole.dim() != target.dim() or any(whole.shape[d] != target.shape[d] for d in wide):
            follower.classes.keep(factor, "it is written into a part of another tensor")
            continue
        match = next((f for f in found if overlap(f, factor)), None)
        if match is None:
            found.append(factor)
        else:
            follower.classes.tie(match, factor)
    for tensor in (whole, target):
        follower.note(tensor, found)


def _each(follower: Follower, name: str, arguments: Mapping[str, Any], out: Any) -> None:
    """Operators on each element; of all others, what they read is kept whole."""
    tensors = [t for t in tree_leaves(dict(arguments)) if isinstance(t, Tensor)]
    outs = [o for o in tree_leaves(out) if isinstance(o, Tensor)]
    if not any(follower.factors(t) for t in tensors):
        if name.endswith("_") and tensors:
            follower.forget(tensors[0])
        elif outs and _elementwise(tensors, outs):
            shapes = [(own_sizes(t), led(follower.own(t), outs[0].dim())) for t in tensors]
            found = follower.met(shapes)
            for one in outs:
                follower.note(one, found)
    elif not _elementwise(tensors, outs):
        for tensor in tensors:
            follower.keep(tensor, f"it is read by {name}, which is kept whole")
    elif outs:
        follower.merge(outs, [(t, follower.factors(t)) for t in tensors if t.dim()])


def _elementwise(tensors: Sequence[Tensor], outs: Sequence[Tensor]) -> bool:
    try:
        shape = torch.broadcast_shapes(*(t.shape for t in tensors))  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
    return all(o.shape == shape for o in outs)


def _without(factor: Tensor, dims: Sequence[int]) -> Tensor:
    for dim in dims:
        factor = factor.select(dim, 0)
    return factor


def _batch_norm(follower: Follower, args: Any, _: Any, out: Any) -> None:
    for ids in of_channels(follower, args[0], "a BatchNorm mixes its positions"):
        _vectors(follower, args[1:5], ids)
    follower.note(tree_leaves(out)[0], follower.factors(args[0]))


def _vectors(follower: Follower, tensors: Sequence[Any], ids: Tensor) -> None:
    """Parameters of one number for each channel."""
    for vector in map(follower.weight, tensors):
        if vector is not None:
            follower.classes.meet(
                vector.name, 0, vector.shape[0], Role.THROUGH, vector.along(0), ids
            )


def _normalised(follower: Follower, args: Any, _: Any, out: Any) -> None:
    """Each number by the mean of the last dimensions: the input, their sizes, parameters."""
    source, shape, *parameters = args
    dims = range(source.dim() - len(shape), source.dim())
    for factor in follower.factors(source):
        follower.averaged(factor, dims, _NORMALISED)
    found = follower.factors(source)
    for weight in map(follower.weight, parameters):
        for factor in found if weight is not None else ():
            assert weight is not None  # noqa: S101  (the line above)
            follower.through(weight, factor)
    follower.note(tree_leaves(out)[0], follower.factors(source))


def _group_norm(follower: Follower, args: Any, arguments: Mapping[str, Any], out: Any) -> None:
    """Groups stand or fall as a whole, since each has a mean of its own."""
    for ids in of_channels(follower, args[0], "a normalisation mixes its positions"):
        if arguments["group"] == 1:
            follower.averaged(ids.reshape(1, -1), [1], _NORMALISED)
        else:
            follower.classes.tie_along(ids.reshape(arguments["group"], -1), 1)
        _vectors(follower, args[1:3], ids)
    follower.note(out[0], follower.factors(args[0]))


def _cat(follower: Follower, args: Any, kwargs: Any, out: Tensor) -> None:
    """Along the dimension identities follow each other; along others they are tied.

    Empty tensors bring nothing: code for tokens before the others often has none of them.
    """
    pieces = [t for t in args[0] if t.numel()]
    dim = kwargs.get("dim", 0) % out.dim()
    known = [follower.own(t) for t in pieces]
    shapes = [tuple(1 if d == dim else n for d, n in enumerate(t.shape)) for t in pieces]
    across = [tuple(f for f in factors if f.shape[dim] == 1) for factors in known]
    merged = follower.met(list(zip(shapes, across, strict=True)))
    along = [[f for f in factors if f.shape[dim] > 1] for factors in known]
    for several in zip_longest(*along):
        parts = [
            torch.zeros([1] * out.dim(), dtype=torch.long) if part is None else part
            for part in several
        ]
        wide = [p.expand(t.shape) for p, t in zip(parts, pieces, strict=True)]
        merged.append(torch.cat(wide, dim))
    follower.note(out, merged)


def _stack(follower: Follower, args: Any, kwargs: Any, out: Tensor) -> None:
    dim = kwargs.get("dim", 0) % out.dim()
    met = follower.met([(tuple(t.shape), follower.factors(t)) for t in args[0]])
    follower.note(out, [f.unsqueeze(dim) for f in met])


def _pad(follower: Follower, args: Any, _: Any, out: Tensor) -> None:
    source, widths = args[0], list(args[1])
    found = []
    for factor in follower.factors(source):
        own = list(widths)
        for place in range(len(own) // 2):
            if factor.shape[source.dim() - 1 - place] == 1:
                own[2 * place : 2 * place + 2] = [0, 0]
        found.append(torch.constant_pad_nd(factor, own, 0))
    follower.note(out, found)


def _pixel_shuffle(follower: Follower, args: Any, _: Any, out: Tensor) -> None:
    blocks = [
        one.reshape(out.shape[1], -1)
        for one in of_channels(follower, args[0], "its positions are mixed")
    ]
    for one in blocks:
        follower.classes.tie_along(one, 1)
    follower.note(out, [one[:, 0].reshape(1, -1, 1, 1) for one in blocks])


def _pixel_unshuffle(follower: Follower, args: Any, _: Any, out: Tensor) -> None:
    """Each channel becomes as many as a block has positions."""
    ids = of_channels(follower, args[0], "its positions are mixed")
    several = [one.repeat_interleave(args[1] ** 2) for one in ids]
    follower.note(out, [one.reshape(1, -1, 1, 1) for one in several])


def _glu(follower: Follower, args: Any, arguments: Mapping[str, Any], out: Tensor) -> None:
    """The first half, element by element, by the sigmoid of the second."""
    dim = arguments.get("dim", -1) % args[0].dim()
    found = []
    for factor in follower.factors(args[0]):
        one, *others = factor.chunk(2, dim)
        for other in others:
            follower.classes.tie(one, other)
        found.append(one)
    follower.note(out, found)


def _channel_shuffle(follower: Follower, args: Any, _: Any, out: Tensor) -> None:
    """Groups lose the same places, so that they stay of equal size."""
    ids = of_channels(follower, args[0], "its positions are mixed")
    groups = [one.reshape(args[1], -1) for one in ids]
    for one in groups:
        follower.classes.tie_along(one, 0)
    follower.note(out, [one.T.reshape(1, -1, *(1,) * (out.dim() - 2)) for one in groups])


def _embedding(follower: Follower, args: Any, _: Any, out: Tensor) -> None:
    table = follower.weight(args[0])
    if table is not None and table.places.shape == table.shape:
        made = follower.classes.made(table.name, 1, table.shape[1], torch.arange(table.shape[1]))
        follower.note(out, [made.reshape((1,) * (out.dim() - 1) + (-1,))])


_RULES: Mapping[str, Rule] = {
    "convolution": convolution,
    "addmm": addmm,
    "baddbmm": addmm,
    "mm": lambda f, args, _, out: product(f, out, args[0], args[1]),
    "bmm": lambda f, args, _, out: product(f, out, args[0], args[1]),
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "_batch_norm_no_update": _batch_norm,
    "native_layer_norm": _normalised,
    "_fused_rms_norm": _normalised,
    "native_group_norm": _group_norm,
    "cat": _cat,
    "stack": _stack,
    "constant_pad_nd": _pad,
    "channel_shuffle": _channel_shuffle,
    "native_channel_shuffle": _channel_shuffle,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "glu": _glu,
    "embedding": _embedding,
}
