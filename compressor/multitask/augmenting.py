"""Changes at random that leave an input what it is, for inputs of any kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from compressor.errors import DataError
from compressor.network.data import Inputs, as_inputs

Augment: TypeAlias = Callable[..., Any]

_SHIFT = 8  # by up to this part of an edge
_BRIGHTNESS = 0.2  # standard deviations of the inputs
_NOISE = 0.05  # likewise


def augmented(inputs: Inputs, augment: Augment | None) -> Inputs:
    """The inputs, each changed at random; tensors keep their shapes and types.

    Args:
        inputs: `[N, …]` each.
        augment: the user's, called with the tensors; without it, images `[N, channels, height,
            width]` are flipped, shifted by up to an eighth of their edges (zeros come in), made
            brighter or darker by a random share of a standard deviation (0.2), and get noise (0.05
            standard deviations); other floating-point tensors get the noise.

    Raises:
        DataError: the user's function raises or returns something else, or there is no
            floating-point tensor to change.
    """
    if augment is None:
        if not any(x.is_floating_point() for x in inputs):
            raise DataError(
                "inputs are changed at random to tell which are alike, but none of them is made "
                "of floating-point numbers; give Task(augment=…), which changes them"
            )
        return tuple(_changed(x) if x.is_floating_point() else x for x in inputs)
    try:
        found = as_inputs(augment(*inputs))
    except Exception as error:
        raise DataError(
            f"augment must change inputs, but with shapes {_shapes(inputs)} it raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if [(x.shape, x.dtype) for x in found] != [(x.shape, x.dtype) for x in inputs]:
        raise DataError(
            f"augment must return tensors of the shapes and types that it is given, "
            f"{_shapes(inputs)}, but returned {_shapes(found)}"
        )
    return found


def _changed(x: Tensor) -> Tensor:
    scale = x.std(correction=0)
    if x.dim() == 4:
        x = _shifted(_flipped(x))
        x = x + _BRIGHTNESS * scale * torch.randn(len(x), 1, 1, 1).to(x)
    return x + _NOISE * scale * torch.randn(x.shape).to(x)


def _flipped(x: Tensor) -> Tensor:
    flip = torch.rand(len(x), 1, 1, 1).to(x.device) < 0.5
    return torch.where(flip, x.flip(3), x)


def _shifted(x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    down, right = height // _SHIFT, width // _SHIFT
    padded = functional.pad(x, (right, right, down, down))
    rows = torch.randint(0, 2 * down + 1, (len(x),)).tolist()
    columns = torch.randint(0, 2 * right + 1, (len(x),)).tolist()
    return torch.stack(
        [
            one[:, row : row + height, column : column + width]
            for one, row, column in zip(padded, rows, columns, strict=True)
        ]
    )


def _shapes(inputs: Inputs) -> str:
    return ", ".join(f"{x.dtype} {list(x.shape)}" for x in inputs)
