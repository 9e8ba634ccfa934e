"""The layer library: kept channels and refitted consumer weights, from one pass over images.

For every weight that reads channels of a search layer, the moments of its inputs in the original
network are collected once. From them follow which channels to keep, and the best weights for
whatever is kept; both need no labels and no training. A candidate network is then assembled from
these pieces. See `docs/library.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from compressor.network.blocks import drop
from compressor.network.data import Batches, Inputs
from compressor.network.tracing import trace_fates
from compressor.progress import Event, Progress, silent
from compressor.refit.assembly import Assembler
from compressor.refit.consumers import Consumer, consumer_names, read_consumers, sorted_out
from compressor.refit.gates import gate_slopes
from compressor.refit.ranking import MOMENTS, NOTHING, RANKINGS, Evidence, check_ranking, magnitude
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
    check_ranking(ranking)
    fates = trace_fates(model, example)
    names, sliced = sorted_out(model, space, fates)
    known = {}
    if refit or ranking in MOMENTS:
        known = read_consumers(model, names, fates, calibration)
    evidence = Evidence(model, fates, known)
    if ranking == "taylor":
        gated = [n for n in consumer_names(space) if n in fates]
        evidence = replace(evidence, gates=gate_slopes(model, gated, calibration))
    layers, unranked = [], []
    for i, layer in enumerate(space.layers):
        ordered, why = _ordered(layer, ranking, evidence)
        layers.append(ordered)
        unranked += [Frozen(layer.name, why)] if why else []
        progress(Event("library", i + 1, len(space.layers), why or layer.name))
    ranked = replace(space, layers=tuple(layers))
    return LayerLibrary(model, ranked, known if refit else {}, sliced, tuple(unranked))


def _ordered(layer: SearchLayer, ranking: str, evidence: Evidence) -> tuple[SearchLayer, str]:
    """The layer with its channels in order, and why not in the order that was asked for."""
    if layer.group is None:
        return layer, ""
    order, why = RANKINGS[ranking](layer.group, evidence), ""
    if order is None:
        order = magnitude(layer.group, evidence)
        why = f"ranked by magnitude: {NOTHING[ranking]}"
    return replace(layer, group=replace(layer.group, order=order)), why
