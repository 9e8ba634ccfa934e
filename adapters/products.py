"""Products with weights: what reads channels, and what makes new ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from adapters.elements import Weight, constant
from adapters.follower import Follower
from compressor.coupling import Role

_COMPUTED = (
    "a convolution computes its weights anew each time, as parametrisations do; what stays can be "
    "folded first, with torch.nn.utils.parametrize.remove_parametrizations"
)
_SUMMED = "a product of activations sums over it"


def product(follower: Follower, out: Any, left: Tensor, right: Tensor) -> None:
    """`[…, M, K] @ […, K, N]`, the second of which may be a parameter."""
    if follower.weight(left) is not None and follower.weight(right) is None:
        for tensor in (left, right):
            follower.keep(tensor, "it is multiplied by a parameter from the left")
        return
    weight = follower.weight(right)
    if weight is None:
        follower.note(out, _between(follower, left, right))
    else:
        follower.note(out, _weighed(follower, left, weight))
    follower.measured(out, int(left.shape[-1]), out.dim() - (weight is not None))


def _between(follower: Follower, left: Tensor, right: Tensor) -> list[Tensor]:
    """A product of two activations."""
    operands = []
    for tensor, inner in ((left, -1), (right, -2)):
        dim, shape = inner % tensor.dim(), list(tensor.shape)
        found = (follower.mixed(f, [dim], _SUMMED) for f in follower.factors(tensor))
        shape[dim] = 1
        operands.append((tuple(shape), tuple(f for f in found if f is not None)))
    return follower.met(operands)


def _weighed(follower: Follower, left: Tensor, weight: Weight) -> list[Tensor]:
    """A product with a parameter `[K, N]`, perhaps repeated for each of a batch."""
    while weight.places.dim() > 2 and constant(weight.places, 0):
        weight = replace(weight, places=weight.places[0])
    reads, makes = _sides(weight)
    if reads is None or makes is None or weight.places.dim() != 2:
        follower.keep(left, f"{weight.name!r} is not used as a plain matrix")
        return []
    found: list[Tensor] = []
    source = follower.weight(left)
    # a table that somebody computed, as of positions, is no choice; one that was learnt is
    for factor in follower.own(left) if source is None or source.learnt else ():
        if factor.shape[-1] == 1:
            found.append(factor)
            continue
        read = follower.mixed(factor, range(factor.dim() - 1), "rows of a product follow it")
        if read is not None:
            at = replace(weight, places=weight.places[:, 0]).along(reads)
            follower.classes.meet(
                weight.name, reads, weight.shape[reads], Role.CONSUMED, at, read.reshape(-1)
            )
    at = replace(weight, places=weight.places[0]).along(makes)
    made = follower.classes.made(weight.name, makes, weight.shape[makes], at)
    found.append(made.reshape((1,) * (left.dim() - 1) + (-1,)))
    return found


def _sides(weight: Weight) -> tuple[int | None, int | None]:
    """Which dimension of a parameter the rows of a matrix follow, and which the columns."""
    found: list[int | None] = []
    along = [weight.along(d) for d in range(len(weight.shape))]
    for side in (0, 1):
        if weight.places.shape[side] == 1:
            follows = [d for d, size in enumerate(weight.shape) if size == 1]
        else:
            follows = [d for d, places in enumerate(along) if not constant(places, side)]
        found.append(follows[0] if len(follows) == 1 else None)
    return found[0], found[1]


def convolution(follower: Follower, args: Any, _: Any, out: Tensor) -> None:
    """`aten.convolution`: of one to three dimensions, in groups, transposed."""
    source, kernel, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    weight, classes = follower.weight(kernel), follower.classes
    ids = of_channels(follower, source, "a convolution mixes its positions")
    plain = weight is not None and weight.places.shape == weight.shape
    if weight is None or not plain or (transposed and groups > 1):
        for one in ids:
            classes.keep(one, _COMPUTED)
        return
    outputs, role = out.shape[1], Role.PRODUCED
    if groups == source.shape[1] == outputs and groups > 1:
        made, role = ids[:1], Role.THROUGH
        for one in ids:
            classes.meet(weight.name, 0, outputs, role, torch.arange(outputs), one)
    else:
        reads, makes = (0, 1) if transposed else (1, 0)
        for one in ids:
            _read_in_groups(follower, weight, reads, groups, one)
        fresh = classes.made(weight.name, makes, weight.shape[makes], torch.arange(outputs))
        classes.tie_along(fresh.reshape(groups, -1), 0)
        made = [fresh]
    follower.note(out, [one.reshape(1, -1, *(1,) * (out.dim() - 2)) for one in made])
    vector = follower.weight(bias)
    for one in made if vector is not None else ():
        assert vector is not None  # noqa: S101  (the line above)
        classes.meet(vector.name, 0, outputs, role, vector.along(0), one)


def of_channels(follower: Follower, source: Tensor, reason: str) -> list[Tensor]:
    """Identities `[C]` of the channels of `[N, C, …]`; those of positions are kept."""
    found = []
    for factor in follower.factors(source):
        positions = [d for d in range(factor.dim()) if d != 1]
        apart = follower.mixed(factor, positions, reason)
        if apart is not None and apart.shape[1] > 1:
            found.append(apart.reshape(-1))
    return found


def _read_in_groups(follower: Follower, weight: Weight, dim: int, groups: int, ids: Tensor) -> None:
    """A convolution keeps its number of groups: all of them lose the same places."""
    size = weight.shape[dim]
    if groups > 1 and size == 1:
        follower.classes.keep(ids, "each of its channels is a group of its own")
    else:
        follower.classes.tie_along(ids.reshape(groups, -1), 0)
    follower.classes.meet(weight.name, dim, size, Role.CONSUMED, torch.arange(size), ids[:size])


def addmm(follower: Follower, args: Any, _: Any, out: Tensor) -> None:
    """A product and what is added to it."""
    product(follower, out, args[1], args[2])
    vector = follower.weight(args[0])
    if vector is None:
        follower.merge([out], [(t, follower.factors(t)) for t in (out, args[0])])
        return
    for factor in follower.factors(out):
        follower.through(vector, factor, Role.PRODUCED)
