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

from compressor.assembly import Assembler
from compressor.consumers import Consumer, read_consumers, sorted_out
from compressor.coupling import Role
from compressor.data import Batches, Inputs
from compressor.elimination import Reader, elimination_order
from compressor.progress import Event, Progress, silent
from compressor.space import Architecture, Frozen, SearchLayer, SearchSpace
from compressor.tracing import trace_fates


@dataclass(frozen=True)
class LayerLibrary:
    """Refitted weights of every architecture of a space.

    Attributes:
        model: the original network.
        space: its search space; channel orders are those of the library.
        consumers: path of a module to what is known about it.
        sliced: modules whose weights are only sliced, with the reason.
    """

    model: nn.Module
    space: SearchSpace
    consumers: Mapping[str, Consumer]
    sliced: tuple[Frozen, ...]

    def build(self, architecture: Architecture) -> nn.Module:
        """The network of an architecture with refitted consumers, in evaluation mode.

        The original network is not touched.
        """
        return Assembler(self.model, self.space, self.consumers).assemble(architecture)


def make_library(
    model: nn.Module,
    space: SearchSpace,
    example: Inputs,
    calibration: Batches,
    progress: Progress = silent,
    *,
    reorder: bool = True,
) -> LayerLibrary:
    """Collects moments on the calibration batches and ranks the channels of every layer.

    Args:
        model: the original network; not touched.
        space: its search space, with any channel orders.
        example: inputs `[N, …]`.
        calibration: batches; targets are not used.
        progress: told after each layer.
        reorder: whether channels are ranked by what consumers can reconstruct; otherwise the
            orders of `space` stay.
    """
    fates = trace_fates(model, example)
    names, sliced = sorted_out(model, space, fates)
    consumers = read_consumers(model, names, fates, calibration)
    layers = []
    for i, layer in enumerate(space.layers):
        layers.append(_ranked(layer, consumers) if reorder else layer)
        progress(Event("library", i + 1, len(space.layers), layer.name))
    return LayerLibrary(model, replace(space, layers=tuple(layers)), consumers, sliced)


def _ranked(layer: SearchLayer, consumers: Mapping[str, Consumer]) -> SearchLayer:
    if layer.group is None:
        return layer
    units = len(layer.group.order)
    readers = []
    for coupling in layer.group.couplings:
        consumer = consumers.get(coupling.tensor.rpartition(".")[0])
        if coupling.role is Role.CONSUMED and consumer is not None:
            places = consumer.places(coupling, units)
            readers.append(Reader(consumer.system, consumer.weight, places))
    if not readers:
        return layer
    order = elimination_order(readers, units)
    return replace(layer, group=replace(layer.group, order=order))
