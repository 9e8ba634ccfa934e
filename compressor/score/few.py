"""Which images candidates are refitted to and compared on, and how many are shown at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compressor.network.counting import evaluating, forward
from compressor.network.data import Batches, Inputs, alike, part_of, size_of, slices, split

_MOST = 64  # images shown at once on a CPU, fewer where they are large: activations stay in caches
_LEAST = 4
_POSITIONS = 1 << 18  # in all of them
_IMAGES = 64
"""That candidates are refitted to. In which order neighbours of a network stand depends little on
how many: on ResNet-56 it is as close to that after a refit to 512 images with 64 as with 128
(rank correlation 0.954 and 0.956, judged on 2,000 images). What images to judge on are worth is
another matter: with 256 of them it is 0.75, with 512 0.79, and with 896 0.85."""


def few_images(calibration: Batches) -> list[tuple[Inputs]]:
    """Batches of the first calibration inputs, without targets: enough to tell candidates apart."""
    return _inputs_between(calibration, 0, _IMAGES)


def other_images(calibration: Batches, most: int) -> list[tuple[Inputs]]:
    """Calibration inputs that no candidate is refitted to; the same ones where there are no more.

    A network looks better on the images that it was refitted to, and the more so the wider it is.
    """
    found = _inputs_between(calibration, _IMAGES, _IMAGES + most)
    return found or few_images(calibration)


def _inputs_between(calibration: Batches, first: int, last: int) -> list[tuple[Inputs]]:
    found: list[tuple[Inputs]] = []
    passed = 0
    for batch in calibration:
        inputs, _ = split(batch)
        size = size_of(inputs)
        begin, end = max(0, first - passed), min(size, last - passed)
        found += [(part_of(inputs, part),) for part in slices(begin, end, at_once(inputs))]
        passed += size
        if passed >= last:
            break
    return found


def at_once(inputs: Inputs) -> int:
    """How many inputs to show at once."""
    if inputs[0].is_cuda:
        return sys.maxsize
    positions = max(x.shape[2:].numel() for x in inputs)
    return max(_LEAST, min(_MOST, _POSITIONS // positions))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory, on a CPU or on a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch has no type of its own for the CPU's.
    told = str(error).lower()
    ways = ("can't allocate memory", "not enough memory", "out of memory")
    if isinstance(error, RuntimeError) and any(way in told for way in ways):
        return True
    return error.__cause__ is not None and out_of_memory(error.__cause__)


def divisible(model: nn.Module, inputs: Inputs, parts: Sequence[slice]) -> bool:
    """Whether the network answers parts of a batch as it answers the whole."""
    with evaluating(model):
        whole = tree_leaves(forward(model, inputs))
        each = [tree_leaves(forward(model, tuple(x[part] for x in inputs))) for part in parts]
    return all(alike(one, _joined([x[place] for x in each])) for place, one in enumerate(whole))


def _joined(leaves: Sequence[object]) -> Tensor | None:
    tensors = [x for x in leaves if isinstance(x, Tensor) and x.dim()]
    if len(tensors) < len(leaves) or len({x.shape[1:] for x in tensors}) > 1:
        return None
    return torch.cat(tensors)
