"""Which images candidates are refitted to and compared on, and how many are shown at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compressor.counting import evaluating, forward
from compressor.data import Batches, Inputs, split

_MOST = 64  # images shown at once on a CPU, fewer where they are large: activations stay in caches
_LEAST = 4
_POSITIONS = 1 << 18  # in all of them
_ALIKE = 1e-4  # largest difference between a batch shown in parts and as a whole, by its scale
_IMAGES = 128  # that candidates are refitted to
_OTHERS = 256  # further ones, for comparing what was refitted


def few_images(calibration: Batches) -> list[tuple[Inputs]]:
    """Batches of the first calibration inputs, without targets: enough to tell candidates apart."""
    return _inputs_between(calibration, 0, _IMAGES)


def other_images(calibration: Batches) -> list[tuple[Inputs]]:
    """Calibration inputs that no candidate is refitted to; the same ones where there are no more.

    A network looks better on the images that it was refitted to, and the more so the wider it is.
    """
    found = _inputs_between(calibration, _IMAGES, _IMAGES + _OTHERS)
    return found or few_images(calibration)


def _inputs_between(calibration: Batches, first: int, last: int) -> list[tuple[Inputs]]:
    found: list[tuple[Inputs]] = []
    passed = 0
    for batch in calibration:
        inputs, _ = split(batch)
        size = inputs[0].shape[0] if inputs[0].dim() else 1
        begin, end = max(0, first - passed), min(size, last - passed)
        for part in slices(begin, end, at_once(inputs)):
            whole = part == slice(0, size)
            found.append((inputs if whole else tuple(_only(x, size, part) for x in inputs),))
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


def slices(begin: int, end: int, most: int) -> list[slice]:
    """Parts of a range, each of at most so many."""
    return [slice(i, min(i + most, end)) for i in range(begin, end, most)]


def _only(x: Tensor, size: int, part: slice) -> Tensor:
    """Some of a batch; what has no batch dimension stays whole."""
    return x[part] if x.dim() and x.shape[0] == size else x


def divisible(model: nn.Module, inputs: Inputs, parts: Sequence[slice]) -> bool:
    """Whether the network answers parts of a batch as it answers the whole."""
    with evaluating(model):
        whole = tree_leaves(forward(model, inputs))
        each = [tree_leaves(forward(model, tuple(x[part] for x in inputs))) for part in parts]
    return all(_alike(one, [leaves[place] for leaves in each]) for place, one in enumerate(whole))


def _alike(whole: object, parts: Sequence[object]) -> bool:
    tensors = [x for x in parts if isinstance(x, Tensor) and x.dim()]
    if not isinstance(whole, Tensor) or len(tensors) < len(parts):
        return False
    if any(x.shape[1:] != whole.shape[1:] for x in tensors):
        return False
    joined = torch.cat(tensors)
    if joined.shape != whole.shape:
        return False
    scale = float(whole.abs().max()) if whole.numel() else 0.0
    return torch.allclose(joined, whole, rtol=0.0, atol=_ALIKE * scale)
