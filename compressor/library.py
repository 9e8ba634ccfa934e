"""The layer library: kept channels and refitted consumer weights, from one pass over images.

For every weight that reads channels of a search layer, the moments of its inputs in the original
network are collected once. From them follow which channels to keep, and the best weights for
whatever is kept; both need no labels and no training. A candidate network is then assembled from
these pieces. See `docs/library.md`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from compressor.consumers import Consumer, consumer_names, read_consumers, rest, sorted_out
from compressor.coupling import Role
from compressor.data import Batches, Inputs
from compressor.gates import gate_slopes
from compressor.patches import from_matrix
from compressor.progress import Event, Progress, silent
from compressor.ranking import MOMENTS, NOTHING, RANKINGS, Evidence, check_ranking, magnitude
from compressor.space import Architecture, Frozen, SearchLayer, SearchSpace
from compressor.structure import materialise
from compressor.tracing import trace_fates


@dataclass(frozen=True)
class Piece:
    """What a consumer becomes when some of its inputs are gone.

    Attributes:
        weight: refitted, for all outputs, `[O, D']` in the type of the original weight.
        constant: to be added to each output `[O]`, or None.
    """

    weight: Tensor
    constant: Tensor | None


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
    _pieces: dict[tuple[str, frozenset[int], int | None], Piece] = field(
        default_factory=dict, repr=False, compare=False
    )

    def build(self, architecture: Architecture) -> nn.Module:
        """The network of an architecture with refitted consumers, in evaluation mode.

        The original network is not touched.
        """
        small = materialise(self.model, self.space, architecture).eval().requires_grad_(False)
        modules = dict(small.named_modules(remove_duplicate=False))
        removed = self.space.removed(architecture)
        kernels = self.space.kernels(architecture)
        for name, consumer in self.consumers.items():
            tensor = f"{name}.weight"
            gone = frozenset(removed.get((tensor, consumer.input_dim), ()))
            if gone or tensor in kernels:
                piece = self.piece(name, gone, kernels.get(tensor))
                lost = removed.get((tensor, 1 - consumer.input_dim), set())
                rows = rest(len(piece.weight), lost)
                constant = None if piece.constant is None else piece.constant[rows]
                install(modules, name, piece.weight[rows], constant, consumer.norm)
        return small

    def piece(self, name: str, gone: frozenset[int], kernel: int | None) -> Piece:
        """The refitted weight of a consumer.

        It is solved for once and remembered, unless several search layers decide what the
        consumer reads: then there are too many combinations to keep.

        Args:
            name: path of its module.
            gone: channels that are cut, counted within a group.
            kernel: edge of the cropped kernel, or None.
        """
        key = (name, gone, kernel)
        if key in self._pieces:
            return self._pieces[key]
        consumer = self.consumers[name]
        weight, constant = consumer.refitted(consumer.kept(gone, kernel))
        kind = consumer.weight.dtype
        found = Piece(weight.to(kind), None if constant is None else constant.to(kind))
        if self._readings[name] <= 1:
            self._pieces[key] = found
        return found

    @cached_property
    def _readings(self) -> Counter[str]:
        """How many search layers decide which channels a module reads."""
        groups = [layer.group for layer in self.space.layers if layer.group]
        return Counter(
            coupling.tensor.rpartition(".")[0]
            for group in groups
            for coupling in group.couplings
            if coupling.role is Role.CONSUMED
        )


def install(
    modules: Mapping[str, nn.Module],
    name: str,
    weight: Tensor,
    constant: Tensor | None,
    norm: str | None,
) -> None:
    """Puts a refitted weight into a module, and the constant after it.

    Args:
        modules: path to module.
        name: path of the module.
        weight: new weight as a matrix, `[O, D]` or `[G, O / G, D]`.
        constant: to be added to each output, or None.
        norm: path of the BatchNorm that takes the constant up; None where the bias does.
    """
    module = modules[name]
    with torch.no_grad():
        target = cast(Tensor, module.weight)
        target.copy_(from_matrix(module, weight))
        if constant is None:
            return
        if norm is None:
            cast(Tensor, module.bias).add_(constant.flatten().to(target))
            return
        mean = cast("Tensor | None", modules[norm].running_mean)
        if mean is not None:  # statistics of the batch itself take any constant away
            mean.sub_(constant.flatten().to(target))


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
        ranking: which channels to keep first, a name of `compressor.ranking.RANKINGS`.
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
