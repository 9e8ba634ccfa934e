"""Compares ONNX Runtime with torch: the proof that an exported file computes the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.device.measure import Session, run_session
from compressor.errors import CheckError, MeasureError
from compressor.network.outputs import output_tensors

# Single precision in another order of summation differs by 1e-7 to 1e-5 of the outputs' scale;
# an operator that was translated wrongly, or a branch frozen at tracing, by 1e-2 and more.
TOLERANCE = 1e-3
REMEDY = "if the network has a batch size written into it, export it with --static-batch"
# Only against dividing by zero: networks with random weights have outputs down to 1e-9, and a
# wrong graph must show there as well.
_SCALE_FLOOR = 1e-12


def largest_difference(
    model: nn.Module, session: Session, compared: Sequence[tuple[Tensor, ...]], tolerance: float
) -> float:
    """Largest difference over all inputs, as a share of the largest value of the output.

    Raises:
        CheckError: it is above `tolerance` or undefined, the shapes differ, or one of the two
            cannot run on an input.
    """
    largest = 0.0
    for inputs in compared:
        difference = _difference(model, session, inputs)
        # Written so that NaN fails as well.
        if not difference <= tolerance:
            raise CheckError(
                f"ONNX Runtime and torch must agree within {tolerance:g} of the outputs' scale, "
                f"but differ by {difference:g} at batch size {inputs[0].shape[0]}; the network "
                "may behave differently when traced (look for Python state, randomness and "
                "branches on values)"
            )
        largest = max(largest, difference)
    return largest


def _difference(model: nn.Module, session: Session, inputs: tuple[Tensor, ...]) -> float:
    """Largest difference of any output, as a share of that output's largest value."""
    tensors = tuple(t.detach().cpu() for t in inputs)
    try:
        with torch.no_grad():
            expected = output_tensors(model(*tensors))
        found = run_session(session, [t.numpy() for t in tensors])
    except (MeasureError, RuntimeError, ValueError, TypeError) as error:
        sizes = [tuple(t.shape) for t in tensors]
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckError(
            "the network and its ONNX file must both run, but with inputs of the shapes "
            f"{sizes}: {reason}; {REMEDY}"
        ) from error
    if [tuple(t.shape) for t in expected] != [a.shape for a in found]:
        raise CheckError(
            "ONNX Runtime and torch must give outputs of the same shapes, but torch gives "
            f"{[tuple(t.shape) for t in expected]} and ONNX {[a.shape for a in found]}; {REMEDY}"
        )
    return max((_apart(t.numpy(), a) for t, a in zip(expected, found, strict=True)), default=0.0)


def _apart(expected: NDArray[Any], found: NDArray[Any]) -> float:
    if expected.size == 0:
        return 0.0
    a, b = expected.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):  # equal infinities agree, any other pair must not
        difference = np.where(a == b, 0.0, np.abs(a - b))
    finite = np.abs(a[np.isfinite(a)])
    return float(difference.max() / max(float(finite.max(initial=0.0)), _SCALE_FLOOR))


def batched(inputs: Sequence[Tensor]) -> list[bool]:
    """Which inputs carry the batch: those that agree with the first in dimension 0."""
    size = inputs[0].shape[0] if inputs and inputs[0].dim() else None
    return [t.dim() > 0 and t.shape[0] == size for t in inputs]


def with_batch(inputs: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """The inputs repeated or cut to a batch size; those without a batch are as they were."""
    return tuple(
        t[torch.arange(size) % t.shape[0]] if carries else t
        for t, carries in zip(inputs, batched(inputs), strict=True)
    )


def random_inputs(
    example: tuple[Tensor, ...], batches: Sequence[int] | None
) -> list[tuple[Tensor, ...]]:
    """Random inputs in the range of the example's, one set for each batch size."""
    generator = torch.Generator().manual_seed(0)
    sets = [with_batch(example, size) for size in batches] if batches else [example]
    return [tuple(_random_like(t, generator) for t in inputs) for inputs in sets]


def _random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.is_floating_point():
        noise = torch.randn(tensor.shape, generator=generator)
        spread = tensor.float().std(unbiased=False) if tensor.numel() else torch.ones(())
        return (tensor.float().mean() + noise * (spread or 1.0)).to(tensor.dtype)
    # Shuffled, since whole numbers are often indices with a range of their own.
    order = torch.randperm(tensor.numel(), generator=generator)
    return tensor.flatten()[order].reshape(tensor.shape)
