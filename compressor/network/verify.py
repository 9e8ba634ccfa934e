"""Proves each search layer on the network at hand; what fails is frozen, with the reason.

Three promises are checked on a copy of the network: the materialised network runs, its outputs
equal those of the masked original, and its multiply-adds and parameters equal the tables'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor, nn

from compressor.network.proof import Probe
from compressor.progress import Event, Progress, silent
from compressor.space import Choice, Frozen, SearchLayer, SearchSpace

# Checks of layers that lie so many apart, where there are more: as many as these multiply-adds
# allow, which a core does in some seconds.
_FEWEST, _MOST, _MADDS = 2, 8, 1e11


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
