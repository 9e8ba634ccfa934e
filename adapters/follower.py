"""What the tensors of a forward pass stand for, element by element."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from adapters.classes import Classes
from adapters.elements import (
    Factors,
    Size,
    Statistic,
    Weight,
    led,
    overlap,
    own_sizes,
    pairs,
    same,
    shared,
)
from compressor.coupling import Role
from compressor.network.counting import product_name

_Part: TypeAlias = tuple[Weight | Factors, int, int]


class Follower:
    """Identities of the elements of all tensors that are alive.

    An element may stand for several things at once (of a token and of a channel), so that there
    are several tensors of identities; each has size 1 along dimensions in which it does not change.

    Attributes:
        classes: which identities are tied, and which tensors they meet.
        products: number of operators that multiplied so far.
        statistic: name of the running operator, if it takes a statistic.
    """

    def __init__(self, model: nn.Module) -> None:
        """Knows the parameters and buffers."""
        self.classes = Classes()
        self._known: Any = WeakIdKeyDictionary()
        self.products = 0
        self.statistic = ""
        self._rectangles: list[tuple[Tensor, Sequence[int]]] = []
        self._sizes: list[tuple[Size, _Part]] = []
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            places = torch.arange(tensor.numel()).reshape(tensor.shape)
            learnt = isinstance(tensor, nn.Parameter)
            self._known[tensor] = Weight(name, tuple(tensor.shape), places, learnt)

    def known(self, tensor: Any) -> Weight | Factors:
        """What a tensor stands for, as it was noted; runs no operator."""
        found: Weight | Factors = self._known.get(tensor, ())
        return found

    def factors(self, tensor: Any) -> Factors:
        """Identities of an activation, in roots; none of a parameter."""
        known = self.known(tensor) if isinstance(tensor, Tensor) else ()
        return () if isinstance(known, Weight) else tuple(map(self.small, known))

    def weight(self, tensor: Any) -> Weight | None:
        """The parameter that a tensor holds elements of."""
        known = self.known(tensor) if isinstance(tensor, Tensor) else None
        return known if isinstance(known, Weight) else None

    def own(self, tensor: Any) -> Factors:
        """Identities of an activation, or of a parameter that is used like one."""
        weight = self.weight(tensor)
        if weight is None or not tensor.is_floating_point():
            return self.factors(tensor)
        return tuple(
            self.small(self.classes.made(weight.name, dim, size, weight.along(dim), Role.THROUGH))
            for dim, size in enumerate(weight.shape)
            if size > 1
        )

    def note(self, out: Any, factors: Iterable[Tensor]) -> None:
        """What a tensor stands for; identities of nothing are left out, equal ones are one."""
        if not isinstance(out, Tensor):
            return
        kept: list[Tensor] = []
        for factor in factors:
            small = self.small(factor.expand(out.shape))
            if bool((small != 0).any()) and not any(same(small, k) for k in kept):
                kept.append(small)
        self._known[out] = tuple(kept)

    def note_weight(self, out: Tensor, weight: Weight) -> None:
        """A tensor that holds elements of a parameter."""
        self._known[out] = weight

    def forget(self, tensor: Tensor) -> None:
        """A tensor that no longer holds what it did."""
        if self.weight(tensor) is None:
            self._known.pop(tensor, None)

    def keep(self, tensor: Any, reason: str) -> None:
        """Says why nothing of a tensor can be cut."""
        for factor in self.factors(tensor):
            self.classes.keep(factor, reason)

    def small(self, factor: Tensor) -> Tensor:
        """Identities as roots, with size 1 along dimensions in which they do not change."""
        for dim, (size, stride) in enumerate(zip(factor.shape, factor.stride(), strict=True)):
            if size > 1 and stride == 0:
                factor = factor.narrow(dim, 0, 1)
        factor = self.classes.roots(factor)
        for dim, size in enumerate(factor.shape):
            first = factor.narrow(dim, 0, min(1, size))
            if size > 1 and bool((factor == first).all()):
                factor = first
        return factor

    def mixed(self, factor: Tensor, dims: Iterable[int], reason: str) -> Tensor | None:
        """Identities after an operator mixed what lies along some dimensions.

        What also differs elsewhere becomes one along these, as the channels of a head that are
        multiplied with each other; what does not is kept, for `reason`, and None is returned.
        """
        along = [d for d in dims if factor.shape[d] > 1]
        if not along:
            return factor
        if sum(size > 1 for size in factor.shape) > len(along):
            for dim in along:
                self.classes.tie_along(factor, dim)
            factor = self.small(factor)
        if factor.numel() > 1 and all(factor.shape[d] == 1 for d in along):
            return factor
        self.classes.keep(factor, reason)
        return None

    def averaged(self, factor: Tensor, dims: Iterable[int], reason: str) -> Tensor | None:
        """Identities that the running operator takes a statistic over.

        Channels that do not change elsewhere are left out of it when they go, see
        `compressor.network.statistics`; others are `mixed`.
        """
        changing = [d for d, size in enumerate(factor.shape) if size > 1]
        if not self.statistic or len(changing) != 1 or changing[0] not in dims:
            return self.mixed(factor, dims, reason)
        self.classes.statistic(Statistic(self.statistic, changing[0]), factor)
        return factor

    def rectangle(self, ids: Tensor, dims: Sequence[int]) -> None:
        """A dimension became several, of which only one can shrink; see `settle`."""
        if sum(ids.shape[d] > 1 for d in dims) > 1:
            self._rectangles.append((ids, dims))

    def settle(self) -> None:
        """What can only be told at the end: which dimension of several shrinks, and sizes.

        Of dimensions that were one, it is the innermost that still changes. A size that changes
        along other dimensions as well is left out: then the network cannot be cut there.
        """
        for ids, dims in self._rectangles:
            small = self.small(ids)
            changing = [d for d in dims if small.shape[d] > 1]
            for dim in changing[:-1]:
                self.classes.tie_along(small, dim)
        for size, (known, dim, parts) in self._sizes:
            for factor in self.stands_for(known):
                if factor.shape[dim] > 1 and factor.numel() == factor.shape[dim]:
                    ids = factor.reshape(parts, -1)[:, 0]
                    self.classes.size(size, ids)

    def measured(self, out: Tensor, inner: int, dims: int) -> None:
        """What the last product costs goes with what its output stands for.

        Args:
            out: of the product.
            inner: size that is summed over.
            dims: so many dimensions of `out` are no weight's.
        """
        shape, known = (*out.shape, inner), self.known(out)
        for dim in range(dims):
            size = Size(product_name(self.products), dim, shape)
            self.sized(size, (known, dim, shape[dim]))

    def sized(self, size: Size, part: _Part) -> None:
        """Notes a size that may shrink; runs no operator.

        Args:
            size: which.
            part: what a tensor stands for, the dimension that has this size, and into how many
                parts the size divides it.
        """
        self._sizes.append((size, part))

    def merge(self, outs: Sequence[Tensor], operands: Sequence[tuple[Tensor, Factors]]) -> None:
        """Ties what meets in one element of the outputs; operands have the outputs' dimensions."""
        merged = self.met(
            [(own_sizes(t), led(f, outs[0].dim())) for t, f in operands if self.weight(t) is None]
        )
        for tensor, _ in operands:
            weight = self.weight(tensor)
            for factor in merged if weight is not None else ():
                assert weight is not None  # noqa: S101  (the line above)
                self.through(weight, factor)
        for out in outs:
            self.note(out, merged)

    def met(self, operands: Sequence[tuple[tuple[int, ...], Factors]]) -> list[Tensor]:
        """Ties what meets of several activations, and returns all that they stand for.

        Args:
            operands: shapes and identities; these have the dimensions of the output.
        """
        merged: list[Tensor] = []
        for _, factors in operands:
            merged += self._unmatched(merged, factors)
        merged = [self.small(factor) for factor in merged]
        now = [(shape, tuple(map(self.small, factors))) for shape, factors in operands]
        for factor in merged:
            self._require_all(factor, now)
        return merged

    def _unmatched(self, merged: Sequence[Tensor], factors: Factors) -> list[Tensor]:
        """The factors that are like none before; the others are tied to those."""
        left, fresh = list(merged), []
        for factor in factors:
            match = next((m for m in left if same(m, factor)), None)
            if match is None:
                match = next((m for m in left if overlap(m, factor)), None)
                if match is not None and not self._held_apart(match, factor):
                    self.classes.tie(match, factor)
            if match is None:
                fresh.append(factor)
            left = [m for m in left if m is not match]
        return fresh

    def _held_apart(self, one: Tensor, other: Tensor) -> bool:
        """Whether a parameter is a constant beside channels that also change elsewhere.

        As angles are that turn every head's queries alike: what is cut then is whole heads.
        """
        loose = next((ids for ids in (one, other) if self.classes.loose(ids)), None)
        if one.shape == other.shape or loose is None:
            return False
        channels = other if loose is one else one
        both = shared(one, other)
        reason = "it meets a parameter that does not follow it"
        self.classes.keep(loose, reason)
        self.mixed(channels, both, reason)
        return True

    def _require_all(
        self, factor: Tensor, operands: Sequence[tuple[tuple[int, ...], Factors]]
    ) -> None:
        """What changes along a dimension can only be cut if every operand can that has it."""
        for shape, factors in operands:
            whole = (1,) * (factor.dim() - len(shape)) + shape
            meets = [d for d, size in enumerate(factor.shape) if size > 1 and whole[d] > 1]
            if meets and not any(overlap(factor, other) for other in factors):
                self.mixed(factor, meets, "it meets something whose channels cannot be cut")

    def through(self, weight: Weight, factor: Tensor, role: Role = Role.THROUGH) -> None:
        """A parameter that acts on each channel alone."""
        (places,) = led((weight.places,), factor.dim())
        both = shared(factor, places)
        if not both:
            return  # one number for all channels
        ids, places = (t.reshape(-1) for t in torch.broadcast_tensors(factor, places))  # type: ignore[no-untyped-call]
        ids, spread = self.classes.roots(ids), replace(weight, places=places)
        for dim, size in enumerate(weight.shape):
            at, roots = pairs(spread.along(dim), ids)
            if len(torch.unique(at)) == len(at) and len(torch.unique(roots)) > 1:
                self.classes.meet(weight.name, dim, size, role, at, roots)
                return
        # Angles that turn the queries of all heads alike do not follow; whole heads can still go.
        self.mixed(factor, both, f"{weight.name!r} does not follow its channels")

    def stands_for(self, known: Weight | Factors) -> Factors:
        """Identities of an activation, or of a parameter's elements, as far as they are known."""
        if not isinstance(known, Weight):
            return tuple(map(self.small, known))
        ids = (
            torch.from_numpy(self.classes.slices[known.name, dim].ids)[known.along(dim)]
            for dim in range(len(known.shape))
            if (known.name, dim) in self.classes.slices
        )
        return tuple(map(self.small, ids))
