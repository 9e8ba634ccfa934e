"""What a forward pass of the network tells an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from compressor.network.counting import evaluating, forward, single
from compressor.network.sized import Sizes
from compressor.network.structure import materialise
from compressor.network.verify import BROKEN
from compressor.space import SearchLayer, SearchSpace


def execution_order(model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, int]:
    """Place of each module in the order in which a forward pass first reaches it."""
    order: dict[str, int] = {}
    names = {id(module): name for name, module in model.named_modules()}

    def note(module: nn.Module, _: object) -> None:
        order.setdefault(names[id(module)], len(order))

    handles = []
    try:
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                handles.append(module.register_forward_pre_hook(note))
        with evaluating(model):
            forward(model, single(example))
    finally:
        for handle in handles:
            handle.remove()
    return order


def right_sizes(
    model: nn.Module, example: tuple[Tensor, ...], layers: Sequence[SearchLayer]
) -> set[tuple[str, int]]:
    """Sizes that follow the tensors that the code is given, in the smallest network of some layers.

    Of each layer alone where that network does not run; none of a layer that does not run alone:
    then `verify` decides with all its sizes replaced.
    """
    if not layers:
        return set()
    space = SearchSpace(tuple(layers))
    without = SearchSpace(
        tuple(replace(x, group=replace(x.group, extents=())) for x in layers if x.group)
    )
    right: set[tuple[str, int]] = set()
    try:
        small = materialise(model, without, without.smallest, share=True)
        Sizes(small, right).set(space.resized(space.smallest))
        with evaluating(small):
            forward(small, single(example))
    except BROKEN:
        if len(layers) == 1:
            return set()
        return set().union(*(right_sizes(model, example, [layer]) for layer in layers))
    return right
