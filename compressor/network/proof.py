"""Compares a network that was cut with the masked original, and its counts with the tables."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.cost import madds_table, params_table
from compressor.errors import CompressorError, DataError
from compressor.network.counting import Count, evaluating, forward, single, tracing
from compressor.network.outputs import output_tensors
from compressor.network.structure import masked, materialise
from compressor.space import Architecture, SearchLayer, SearchSpace

# A masked and a smaller network add the same numbers in another order; on ImageNet networks this
# moves float32 outputs by up to 1e-5 of their scale. A wrong coupling moves them by as much as
# the cut itself does.
_NOISE = {torch.float32: 1e-5, torch.float64: 1e-10}
_OF_SCALE = 1e-3
_OF_EFFECT = 1e-2
BROKEN = (CompressorError, RuntimeError, ValueError, IndexError, AttributeError)
"""What a network raises that was cut wrongly."""


@dataclass(frozen=True)
class Probe:
    """A copy of the network on which wrong couplings show, with its outputs and its count.

    `counts` is whether the example is the one input that the count is of; `is_precise` whether it
    is in float64; `doubles` whether that may decide in its place.
    """

    model: nn.Module
    example: tuple[Tensor, ...]
    outputs: list[Tensor]
    count: Count
    counts: bool = True
    doubles: bool = True
    is_precise: bool = False

    @classmethod
    def make(cls, model: nn.Module, example: tuple[Tensor, ...]) -> Probe:
        """Copies the model; constant parameters get values that differ from channel to channel.

        A BatchNorm scale of all zeros (as some networks are initialised) hides whatever is done
        before it, and one of all ones cannot tell one channel from another.

        Raises:
            DataError: the model does not run on the example.
        """
        copied = copy.deepcopy(model).eval()
        tell_channels_apart(copied)
        inputs = single(example)
        # As an adapter saw it: how torch shapes a product depends on who asks for gradients.
        with tracing() as tracer:
            outputs = output_tensors(forward(copied, inputs))
        counted = tracer.count(copied)
        return cls(copied.requires_grad_(False), inputs, outputs, counted)

    @cached_property
    def precise(self) -> Probe | None:
        """The same in float64, where all of the network runs in it.

        In a deep network the effect of one cut can drown in float32's rounding; then this decides.
        """
        if not self.doubles:
            return None
        inputs = tuple(t.double() if t.is_floating_point() else t for t in self.example)
        doubled = copy.deepcopy(self.model).double()
        try:
            with _Casts() as casts:
                outputs = output_tensors(forward(doubled, inputs))
        except DataError:
            return None  # the network casts to float32 itself; the first probe decides alone
        if casts.found:
            return None
        return Probe(doubled, inputs, outputs, self.count, doubles=False, is_precise=True)

    def of_two(self) -> Probe | None:
        """The same with every input twice; None where the network does not run so."""
        batch = self.example[0].shape[0] if self.example and self.example[0].dim() else None
        inputs = tuple(
            torch.cat([t, t]) if t.dim() and t.shape[0] == batch else t for t in self.example
        )
        try:
            outputs = output_tensors(forward(self.model, inputs))
        except DataError:
            return None
        return replace(self, example=inputs, outputs=outputs, doubles=False, counts=False)

    def failure(self, layers: Sequence[SearchLayer], need_effect: bool = True) -> str:
        """Why the smallest network of these layers cannot be trusted; empty if it can be.

        Args:
            layers: all others stay as they are.
            need_effect: whether the cut must show in the outputs.
        """
        space = SearchSpace(tuple(layers))
        return self.compare(space, space.smallest, need_effect)

    def compare(
        self, space: SearchSpace, architecture: Architecture, need_effect: bool = False
    ) -> str:
        """Why this architecture's network differs from the masked original; empty if equal.

        Equal is what differs by rounding alone. Where that is more than float32's usual, float64
        decides, and where the network does not run in it, how small the difference is beside what
        the cut changes.
        """
        reason = self._compare(space, architecture, need_effect)
        if reason and self.precise:
            return self.precise._compare(space, architecture, need_effect)
        if reason and not self.is_precise:
            return self._compare(space, architecture, need_effect, _OF_EFFECT)
        return reason

    def _compare(
        self,
        space: SearchSpace,
        architecture: Architecture,
        need_effect: bool,
        of_effect: float = 0.0,
    ) -> str:
        try:
            small = materialise(self.model, space, architecture, share=True)
            with tracing() as tracer, evaluating(small):
                got = output_tensors(forward(small, self.example))
            with masked(self.model, space, architecture):
                want = output_tensors(forward(self.model, self.example))
        except BROKEN as error:
            return f"the pruned network fails: {_short(error)}"
        difference = _difference(got, want, self.outputs, need_effect, of_effect)
        return difference or self._miscount(space, architecture, tracer.count(small))

    def _miscount(self, space: SearchSpace, architecture: Architecture, counted: Count) -> str:
        if not self.counts:
            return ""
        tables = (
            (
                "MAdds",
                counted.madds,
                madds_table(space, self.count.tensors, products=self.count.products),
            ),
            ("parameters", counted.params, params_table(space, self.count.tensors)),
        )
        for what, actual, table in tables:
            if table(architecture) != actual:
                return f"its {what} are {actual}, but the table says {table(architecture)}"
        return ""


class _Casts(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Whether numbers are made less precise than float64."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten._to_copy and args[0].dtype == torch.float64:
            self.found |= out.dtype.is_floating_point and out.dtype != torch.float64
        return out


def _difference(
    got: Sequence[Tensor],
    want: Sequence[Tensor],
    before: Sequence[Tensor],
    need_effect: bool,
    of_effect: float,
) -> str:
    if [t.shape for t in got] != [t.shape for t in want]:
        pairs = (
            (list(a.shape), list(b.shape))
            for a, b in zip(want, got, strict=False)
            if a.shape != b.shape
        )
        old, new = next(pairs, (len(want), len(got)))
        return f"its width is part of the network's output ({old} would become {new})"
    scale = max((float(t.abs().max()) for t in want if t.numel()), default=0.0)
    effect = _distance(want, before)
    gap = _distance(got, want)
    rounding = all(
        _distance([a], [b]) <= _NOISE.get(b.dtype, 1e-5) * float(b.abs().max())
        for a, b in zip(got, want, strict=True)
        if b.numel()
    )
    if not (rounding or gap <= min(_OF_SCALE * scale, of_effect * effect)):
        return (
            f"the pruned network's output differs from the masked one's by {gap:.2g} "
            f"(outputs up to {scale:.2g}, the cut itself changes them by {effect:.2g})"
        )
    if need_effect and effect <= 10 * gap:
        return (
            "removing its channels changes nothing in the output on the example input, "
            "so the cut cannot be checked"
        )
    return ""


def _distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    gaps = [
        float((x.double() - y.double()).abs().max()) for x, y in zip(a, b, strict=True) if x.numel()
    ]
    return float("nan") if any(map(math.isnan, gaps)) else max(gaps, default=0.0)


def tell_channels_apart(model: nn.Module) -> None:
    """Adds noise, in place, to constant parameters and to untrained BatchNorm statistics."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and _constant(parameter):
                parameter.add_(_noise(parameter, generator))
        for module in model.modules():
            mean, var = (getattr(module, n, None) for n in ("running_mean", "running_var"))
            if isinstance(mean, Tensor) and isinstance(var, Tensor):
                if _constant(mean):
                    mean += _noise(mean, generator)
                if _constant(var):
                    var *= 1 + _noise(var, generator).abs()


def _constant(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return (0.1 * torch.randn(like.shape, generator=generator)).to(like)


def _short(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
