"""What a forward pass of the network tells an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from compressor.errors import CompressorError
from compressor.network.counting import evaluating, forward, single
from compressor.network.sized import Sizes
from compressor.network.structure import materialise
from compressor.space import SearchLayer, SearchSpace


def execution_order(model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, int]:
    """Place of each module in the order in which a forward pass first reaches it."""
    order: dict[str, int] = {}
    names = {id(module): name for name, module in model.named_modules()}

    def note(module: nn.Module, _: object) -> None:
        order.setdefault(names[id(module)], len(order))

    handles = [m.register_forward_pre_hook(note) for m in model.modules()]
    try:
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

    Empty where that network does not run: then `verify` decides with all sizes replaced.
    """
    space = SearchSpace(tuple(layers))
    without = SearchSpace(
        tuple(replace(x, group=replace(x.group, extents=())) for x in layers if x.group)
    )
    right: set[tuple[str, int]] = set()
    try:
        small = materialise(model, without, without.smallest)
        Sizes(small, right).set(space.resized(space.smallest))
        with evaluating(small):
            forward(small, single(example))
    except (CompressorError, RuntimeError):
        return set()
    return right
