"""Proves each search layer on the network at hand; what fails is frozen, with the reason.

Three promises are checked on a copy of the network: the materialised network runs, its outputs
equal those of the masked original, and its multiply-adds and parameters equal the tables'.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
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
from compressor.progress import Event, Progress, silent
from compressor.space import Architecture, Choice, Frozen, SearchLayer, SearchSpace

# A masked and a smaller network add the same numbers in another order; on ImageNet networks this
# moves float32 outputs by up to 1e-5 of their scale. A wrong coupling moves them by as much as
# the cut itself does.
_NOISE = {torch.float32: 1e-5, torch.float64: 1e-10}
_OF_SCALE = 1e-3
BROKEN = (CompressorError, RuntimeError, ValueError, IndexError, AttributeError)
"""What a network raises that was cut wrongly."""
# Checks of layers that lie so many apart, where there are more: as many as these multiply-adds
# allow, which a core does in some ten seconds.
_FEWEST, _MOST, _MADDS = 2, 24, 3e11
_OF_EFFECT = 1e-2


def verify_space(
    model: nn.Module,
    example: tuple[Tensor, ...],
    space: SearchSpace,
    progress: Progress = silent,
) -> SearchSpace:
    """Freezes every layer whose smallest choices cannot be proved right.

    Each layer is checked alone, then all layers together; if only the combination fails, layers
    are added in turn and those that break it are frozen. Of a layer that decides channels and a
    kernel, the part that is right stays. In deep networks layers that lie far apart are checked
    together, and alone only where their outputs are not equal within rounding.

    Args:
        model: the original network; not touched.
        example: inputs `[N, …]`; the first of the batch is used.
        space: as an adapter described it.
        progress: told after each layer.

    Returns:
        The space without the layers that failed; the reasons are in its `frozen`.
    """
    probe = Probe.make(model, example)
    found: dict[str, tuple[SearchLayer | None, str]] = {}
    checks = int(max(_FEWEST, min(_MOST, _MADDS / (2 * probe.count.madds + 1))))
    blocks = [layer for layer in space.layers if layer.block]
    # Without its block nothing of a layer shows, so the others are checked in the whole network.
    for kind in ([layer for layer in space.layers if not layer.block], blocks):
        for first in range(min(checks, len(kind))):
            for layer, good, reason in _proved(probe, kind[first::checks]):
                found[layer.name] = (good, reason)
                progress(Event("verify", len(found), len(space.layers), layer.name))
    kept: list[SearchLayer] = []
    frozen = list(space.frozen)
    for layer in space.layers:
        good, reason = found[layer.name]
        kept += [good] if good else []
        frozen += [Frozen(layer.name, reason)] if reason else []
    blocks = [layer for layer in kept if layer.block]
    kept = [layer for layer in kept if not layer.block]
    if kept:  # in float64: a scale that the code derives from a width can be off by little
        kept, broken = _compatible(probe.precise or probe, [], kept)
        frozen += [Frozen(x.name, f"together with earlier layers: {why}") for x, why in broken]
    if any(map(_written, kept)):
        kept, broken = _for_batches(probe, kept)
        frozen += [Frozen(x.name, f"with two inputs: {why}") for x, why in broken]
    if blocks:
        kept, broken = _compatible(probe.precise or probe, kept, blocks)
        frozen += [Frozen(x.name, f"together with other layers: {why}") for x, why in broken]
    good_ones = {layer.name: layer for layer in kept}
    ordered = tuple(good_ones[x.name] for x in space.layers if x.name in good_ones)
    return SearchSpace(ordered, tuple(frozen))


def _proved(
    probe: Probe, apart: Sequence[SearchLayer]
) -> Iterator[tuple[SearchLayer, SearchLayer | None, str]]:
    """Each layer with what is right of it and what is not; halved until what is wrong is alone."""
    if len(apart) == 1:
        yield apart[0], *_good_part(probe, apart[0])
    elif not probe.failure(apart):
        yield from ((layer, layer, "") for layer in apart)
    else:
        yield from _proved(probe, apart[0::2])
        yield from _proved(probe, apart[1::2])


def _good_part(probe: Probe, layer: SearchLayer) -> tuple[SearchLayer | None, str]:
    """The layer, or of channels and kernel the one that is right; and what is wrong."""
    reason = probe.failure([layer])
    if not (reason and layer.group and layer.kernel):
        return (None if reason else layer), reason
    channels = replace(layer, kernel=None, choices=_only(layer, "channels"))
    kernel = replace(layer, group=None, choices=_only(layer, "kernel"))
    for part, other in ((channels, "kernel"), (kernel, "channels")):
        if not probe.failure([part]):
            return part, f"the {other}: {reason}"
    return None, reason


def _only(layer: SearchLayer, field: str) -> tuple[Choice, ...]:
    found = sorted({int(getattr(choice, field)) for choice in layer.choices})
    return tuple(
        Choice(channels=value) if field == "channels" else Choice(kernel=value) for value in found
    )


def _compatible(
    probe: Probe, layers: Sequence[SearchLayer], more: Sequence[SearchLayer]
) -> tuple[list[SearchLayer], list[tuple[SearchLayer, str]]]:
    """Layers, with as many more as go together with them and with each other; and the others.

    What is added is halved until what is wrong is alone.
    """
    reason = probe.failure([*layers, *more], need_effect=False)
    if not reason:
        return [*layers, *more], []
    if len(more) == 1:
        return list(layers), [(more[0], reason)]
    half = len(more) // 2
    kept, broken = _compatible(probe, layers, more[:half])
    kept, others = _compatible(probe, kept, more[half:])
    return kept, broken + others


def _for_batches(
    probe: Probe, layers: Sequence[SearchLayer]
) -> tuple[list[SearchLayer], list[tuple[SearchLayer, str]]]:
    """Layers whose sizes are right for two inputs as well, where the network takes two."""
    two = probe.of_two()
    if two is None:
        return list(layers), []
    plain = [layer for layer in layers if not _written(layer)]
    kept, broken = _compatible(two, plain, [layer for layer in layers if _written(layer)])
    names = {layer.name for layer in kept}
    return [layer for layer in layers if layer.name in names], broken


def _written(layer: SearchLayer) -> bool:
    """Whether the network's code writes a size out that this layer changes."""
    return layer.group is not None and any(e.written for e in layer.group.extents)


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
