"""The layer library: kept channels and refitted consumer weights, from one pass over images.

For every weight that reads channels of a search layer, the moments of its inputs in the original
network are collected once. From them follow which channels to keep, and the best weights for
whatever is kept; both need no labels and no training. A candidate network is then assembled from
these pieces. See `docs/library.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from compressor.network.blocks import drop
from compressor.network.data import Batches, Inputs
from compressor.network.tracing import trace_fates
from compressor.progress import Event, Progress, silent
from compressor.refit.assembly import Assembler
from compressor.refit.consumers import Consumer, consumer_names, read_consumers, sorted_out
from compressor.refit.gates import gate_slopes
from compressor.refit.ranking import (
    MOMENTS,
    NOTHING,
    RANKINGS,
    Evidence,
    Order,
    View,
    check_ranking,
    magnitude,
)
from compressor.space import Architecture, Frozen, SearchLayer, SearchSpace


@dataclass(frozen=True)
class LayerLibrary:
    """Refitted weights of every architecture of a space.

    Attributes:
        model: the original network.
        space: its search space; channel orders are those of the library.
        consumers: path of a module to what is known about it.
        sliced: modules whose weights can only be sliced, with the reason.
        unranked: layers on which the ranking had nothing to go by, with what it did instead.
    """

    model: nn.Module
    space: SearchSpace
    consumers: Mapping[str, Consumer]
    sliced: tuple[Frozen, ...]
    unranked: tuple[Frozen, ...] = ()

    def build(self, architecture: Architecture) -> nn.Module:
        """The network of an architecture with refitted consumers, in evaluation mode.

        The original network is not touched.
        """
        network = Assembler(self.model, self.space, self.consumers).assemble(architecture)
        drop(network, self.space.dropped(architecture))
        return network


@dataclass(frozen=True)
class Source:
    """A network that a library is made of.

    Attributes:
        model: the original network; not touched.
        space: its search space, with any channel orders.
        example: inputs `[N, …]`.
        calibration: batches; targets are not used.
        importance: what its channels count for, beside those of other networks; above 0.
    """

    model: nn.Module
    space: SearchSpace
    example: Inputs
    calibration: Batches
    importance: float = 1.0


def make_library(
    model: nn.Module,
    space: SearchSpace,
    example: Inputs,
    calibration: Batches,
    progress: Progress = silent,
    *,
    ranking: str = "reconstruction",
    refit: bool = True,
) -> LayerLibrary:
    """Collects moments on the calibration batches and ranks the channels of every layer.

    Args:
        model: the original network; not touched.
        space: its search space, with any channel orders.
        example: inputs `[N, …]`.
        calibration: batches; targets are not used.
        progress: told after each layer.
        ranking: which channels to keep first, a name of `compressor.refit.ranking.RANKINGS`.
        refit: whether weights are refitted; without, the library only ranks.

    Raises:
        UsageError: there is no such ranking.
        DataError: the calibration data gives no finite numbers, or no gradients where the ranking
            needs them.
    """
    source = Source(model, space, example, calibration)
    (library,) = make_libraries([source], progress, ranking=ranking, refit=refit)
    return library


def make_libraries(
    sources: Sequence[Source],
    progress: Progress = silent,
    *,
    ranking: str = "reconstruction",
    refit: bool = True,
) -> tuple[LayerLibrary, ...]:
    """The libraries of several networks of one architecture, with one order of channels for all.

    Args:
        sources: the networks, at least one; their spaces have the same layers and units.
        progress: told after each layer.
        ranking: as for `make_library`; the networks are looked at together.
        refit: as for `make_library`.

    Raises:
        UsageError: there is no such ranking.
        DataError: as for `make_library`.
    """
    check_ranking(ranking)
    known = [_known(source, ranking, refit=refit) for source in sources]
    columns = list(zip(*(source.space.layers for source in sources), strict=True))
    ordered: list[tuple[SearchLayer, ...]] = []
    unranked = []
    for i, layers in enumerate(columns):
        views = [
            View(layer.group, evidence, source.importance)
            for layer, source, (evidence, _) in zip(layers, sources, known, strict=True)
            if layer.group is not None
        ]
        order, why = _order(views, ranking) if views else ((), "")
        ordered.append(tuple(_ordered(layer, order) for layer in layers))
        unranked += [Frozen(layers[0].name, why)] if why else []
        progress(Event("library", i + 1, len(columns), why or layers[0].name))
    spaces = [replace(s.space, layers=tuple(x[i] for x in ordered)) for i, s in enumerate(sources)]
    return tuple(
        LayerLibrary(
            source.model, space, evidence.consumers if refit else {}, sliced, tuple(unranked)
        )
        for source, space, (evidence, sliced) in zip(sources, spaces, known, strict=True)
    )


def _known(source: Source, ranking: str, *, refit: bool) -> tuple[Evidence, tuple[Frozen, ...]]:
    """What can be told of a network, and the modules whose weights can only be sliced."""
    model, calibration = source.model, source.calibration
    fates = trace_fates(model, source.example)
    names, sliced = sorted_out(model, source.space, fates)
    known = {}
    if refit or ranking in MOMENTS:
        known = read_consumers(model, names, fates, calibration)
    evidence = Evidence(model, fates, known)
    if ranking == "taylor":
        gated = [n for n in consumer_names(source.space) if n in fates]
        evidence = replace(evidence, gates=gate_slopes(model, gated, calibration))
    return evidence, sliced


def _order(views: Sequence[View], ranking: str) -> tuple[Order, str]:
    """The order of a layer's channels, and why not that which was asked for."""
    order = RANKINGS[ranking](views)
    if order is None:
        return magnitude(views), f"ranked by magnitude: {NOTHING[ranking]}"
    return order, ""


def _ordered(layer: SearchLayer, order: Order) -> SearchLayer:
    return replace(layer, group=replace(layer.group, order=order)) if layer.group else layer
