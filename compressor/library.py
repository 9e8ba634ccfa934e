"""The layer library: kept channels and refitted consumer weights, from one pass over images.

For every weight that reads channels of a search layer, the moments of its inputs in the original
network are collected once. From them follow which channels to keep, and the best weights for
whatever is kept; both need no labels and no training. A candidate network is then assembled from
these pieces. See `docs/library.md`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from compressor.counting import evaluating, forward
from compressor.coupling import Coupling, Role
from compressor.data import Batches, Inputs, device_of, on
from compressor.least_squares import covariance, elimination_order, restricted
from compressor.moments import Moments, collect, refittable
from compressor.progress import Event, Progress, silent
from compressor.space import Architecture, SearchLayer, SearchSpace
from compressor.structure import materialise
from compressor.tracing import Fate, FateTracer


@dataclass(frozen=True)
class Consumer:
    """A weight that reads channels of search layers.

    Attributes:
        name: path of its module.
        moment: covariance (second moment where no constant can follow) `[D, D]`, float64.
        mean: mean of its inputs `[D]`, or None where no constant can follow.
        weight: original weight as `[O, D]`.
        area: inputs of a patch that one channel takes: k * k, or 1.
        norm: path of the BatchNorm whose mean takes up the constant; None where the bias does.
    """

    name: str
    moment: Tensor
    mean: Tensor | None
    weight: Tensor
    area: int
    norm: str | None


@dataclass(frozen=True)
class LayerLibrary:
    """Refitted weights of every architecture of a space.

    Attributes:
        model: the original network.
        space: its search space; channel orders are those of the library.
        consumers: path of a module to what is known about it.
        plain: path of a module whose weight is only sliced, with the reason.
    """

    model: nn.Module
    space: SearchSpace
    consumers: Mapping[str, Consumer]
    plain: Mapping[str, str]

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
            gone = removed.get((tensor, 1), set())
            if gone or tensor in kernels:
                kept = kept_inputs(self._module(name), gone, kernels.get(tensor))
                rows = _rest(len(consumer.weight), removed.get((tensor, 0), set()))
                self._install(consumer, modules, kept, rows)
        return small

    def _module(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)

    def _install(
        self, consumer: Consumer, modules: Mapping[str, nn.Module], kept: Tensor, rows: Tensor
    ) -> None:
        weight = restricted(consumer.moment, consumer.weight, kept)[rows]
        constant = None
        if consumer.mean is not None:
            lost = consumer.weight[rows].double() @ consumer.mean - weight @ consumer.mean[kept]
            constant = lost
        install(modules, consumer.name, weight, constant, consumer.norm)


def install(
    modules: Mapping[str, nn.Module],
    name: str,
    weight: Tensor,
    constant: Tensor | None,
    norm: str | None,
) -> None:
    """Puts a refitted weight `[O, D]` into a module, and the constant after it.

    Args:
        modules: path to module.
        name: path of the module.
        weight: new weight, flattened to two dimensions.
        constant: to be added to each output, or None.
        norm: path of the BatchNorm that takes the constant up; None where the bias does.
    """
    module = modules[name]
    with torch.no_grad():
        target = cast(Tensor, module.weight)
        target.copy_(weight.reshape(target.shape))
        if constant is None:
            return
        if norm is not None:
            cast(Tensor, modules[norm].running_mean).sub_(constant.to(target))
        else:
            cast(Tensor, module.bias).add_(constant.to(target))


def kept_inputs(module: nn.Module, gone: set[int], kernel: int | None) -> Tensor:
    """Indices of a patch that a cut convolution or linear layer still reads, ascending."""
    weight = cast(Tensor, module.weight)
    channels = weight.shape[1]
    index = torch.arange(weight[0].numel()).reshape(channels, *weight.shape[2:])
    index = index[_rest(channels, gone)]
    if kernel is not None:
        ring = (weight.shape[-1] - kernel) // 2
        index = index[:, ring : ring + kernel, ring : ring + kernel]
    return index.flatten()


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
    names, plain = _sorted_out(model, space, fates)
    moments = collect(model, names, calibration)
    consumers = {n: _consumer(model, n, moments[n], fates[n]) for n in names}
    layers = []
    for i, layer in enumerate(space.layers):
        layers.append(_ranked(layer, consumers) if reorder else layer)
        progress(Event("library", i + 1, len(space.layers), layer.name))
    return LayerLibrary(model, replace(space, layers=tuple(layers)), consumers, plain)


def trace_fates(model: nn.Module, example: Inputs) -> dict[str, Fate]:
    """Where the output of each module's weight goes, in the order of execution.

    Modules whose weight is used without calling them (as attention does with its projections)
    are left out: nothing could be learned from their inputs.
    """
    inputs = on(device_of(model), example)
    tracer = FateTracer(model)
    calls: Counter[nn.Module] = Counter()
    handles = [m.register_forward_pre_hook(lambda m, _: calls.update([m])) for m in model.modules()]
    try:
        with evaluating(model), torch.no_grad(), tracer:
            forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    modules = dict(model.named_modules(remove_duplicate=False))
    return {n: fate for n, fate in tracer.fates.items() if calls[modules[n]] == fate.calls}


def _sorted_out(
    model: nn.Module, space: SearchSpace, fates: Mapping[str, Fate]
) -> tuple[list[str], dict[str, str]]:
    names, plain = [], {}
    for name in consumer_names(space):
        module = model.get_submodule(name)
        why = refittable(module)
        if not why and name not in fates:
            why = "its weight is used without calling the module"
        if why:
            plain[name] = why
        else:
            names.append(name)
    return names, plain


def consumer_names(space: SearchSpace) -> list[str]:
    """Modules whose weights lose inputs or kernel elements by some choice."""
    found: dict[str, None] = {}
    for layer in space.layers:
        for coupling in layer.group.couplings if layer.group else ():
            if coupling.role is Role.CONSUMED:
                found[coupling.tensor.rpartition(".")[0]] = None
        if layer.kernel:
            found[layer.kernel.tensor.rpartition(".")[0]] = None
    return list(found)


def _consumer(model: nn.Module, name: str, moments: Moments, fate: Fate) -> Consumer:
    module = model.get_submodule(name)
    weight = cast(Tensor, module.weight)
    constant = fate.norm is not None or module.bias is not None
    return Consumer(
        name=name,
        moment=covariance(moments.xx, moments.x, moments.count, centred=constant),
        mean=moments.x / moments.count if constant else None,
        weight=weight.detach().flatten(1).cpu(),
        area=weight[0, 0].numel(),
        norm=None if module.bias is not None else fate.norm,
    )


def _ranked(layer: SearchLayer, consumers: Mapping[str, Consumer]) -> SearchLayer:
    if layer.group is None:
        return layer
    units = len(layer.group.order)
    systems = []
    for coupling in layer.group.couplings:
        consumer = consumers.get(coupling.tensor.rpartition(".")[0])
        if coupling.role is Role.CONSUMED and consumer is not None:
            places = _places(coupling, units, consumer)
            systems.append((consumer.moment, consumer.weight, places))
    if not systems:
        return layer
    order = elimination_order(systems, units)
    return replace(layer, group=replace(layer.group, order=order))


def _places(coupling: Coupling, units: int, consumer: Consumer) -> Tensor:
    """Indices of a patch that belong to each unit, `[units, p]`."""
    channels = [coupling.index.positions([unit]) for unit in range(units)]
    base = torch.tensor(channels)[:, :, None] * consumer.area + torch.arange(consumer.area)
    return base.flatten(1)


def _rest(size: int, gone: set[int]) -> Tensor:
    return torch.tensor([i for i in range(size) if i not in gone], dtype=torch.long)
