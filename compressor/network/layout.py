"""The order of images in memory that a network runs fastest with.

Convolutions on a CPU are quicker with the channels last, depthwise ones most of all;
torch keeps the order of the inputs through the network. The values are the same, but a network that
takes views of its activations may not run with it, so it is tried first.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map

from compressor.network.counting import evaluating
from compressor.network.data import Batches, Inputs, alike, device_of, part_of

_FEW = 2  # inputs that are tried


def suits(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a network on a CPU runs with channels last, to the same answer.

    Args:
        model: on any device; not touched.
        inputs: `[N, …]` each.
    """
    convolves = any(isinstance(m, _ConvNd) and m.weight.dim() == 4 for m in model.modules())
    if not convolves or device_of(model).type != "cpu" or not any(x.dim() == 4 for x in inputs):
        return False
    some = part_of(inputs, slice(_FEW))
    with evaluating(model), torch.no_grad():
        try:
            plain = tree_leaves(model(*some))
            other = tree_leaves(model(*laid_out(some)))
        except Exception:  # noqa: BLE001 - someone else's network; then it stays as it is
            return False
    return len(plain) == len(other) and all(
        alike(one, two) or (not isinstance(one, Tensor) and type(one) is type(two))
        for one, two in zip(plain, other, strict=True)
    )


def laid_out(batch: Any) -> Any:
    """A batch with the channels of its images last in memory."""
    return tree_map(_last, batch)


class LaidOut:
    """Batches with the channels of their images last in memory."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return map(laid_out, self._batches)

    def __length_hint__(self) -> int:
        # no __len__: iterables without one must stay true
        known = length_hint(self._batches, -1)
        return known if known >= 0 else NotImplemented


def _last(x: Any) -> Any:
    images = isinstance(x, Tensor) and x.dim() == 4
    return x.contiguous(memory_format=torch.channels_last) if images else x
