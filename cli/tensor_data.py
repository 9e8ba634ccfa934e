"""`--data tensors:FILE.safetensors`: inputs as the network takes them, with targets or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from compressor.errors import DataError

CALIBRATION = 256
_SIZE = 32
_FORM = (
    "tensors:FILE.safetensors holds a tensor for each input of the network, under the input's name "
    "(or `inputs`, of a network with one), and may hold integer `targets` [N]"
)


@dataclass(frozen=True)
class TensorData:
    """Batches of a file; even inputs calibrate and odd ones validate."""

    calibration: list[Any]
    validation: list[Any]


def tensor_data(data: str, names: Sequence[str], example: Sequence[Tensor]) -> TensorData:
    """Calibration and validation batches of a file of tensors.

    Even inputs calibrate, at most `CALIBRATION` of them, odd ones validate.

    Args:
        data: `tensors:FILE.safetensors`.
        names: of the network's inputs.
        example: one set of inputs, whose shapes but for the first dimension the file must have.

    Raises:
        DataError: there is no such file, or it does not fit the network.
    """
    path = Path(data.partition(":")[2]).expanduser()
    if not path.is_file():
        raise DataError(f"{_FORM}, but there is no file {str(path)!r}")
    try:
        held = load_file(path)
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise DataError(f"{_FORM}, but {str(path)!r} cannot be read: {error}") from error
    inputs = [_input(held, name, like, path, alone=len(names) == 1)
              for name, like in zip(names, example, strict=True)]  # fmt: skip
    targets = held.get("targets")
    counts = {len(t) for t in (*inputs, *([] if targets is None else [targets]))}
    if len(counts) != 1 or min(counts) < 2:
        raise DataError(
            f"{_FORM}, all of the same length, which is two or more, but {str(path)!r} holds "
            + ", ".join(f"{name} {list(t.shape)}" for name, t in sorted(held.items()))
        )
    even, odd = ([t[start::2] for t in inputs] for start in (0, 1))
    calibration = _batches(even, None if targets is None else targets[::2], CALIBRATION)
    return TensorData(calibration, _batches(odd, None if targets is None else targets[1::2]))


def _input(
    held: Mapping[str, Tensor], name: str, like: Tensor, path: Path, *, alone: bool
) -> Tensor:
    found = held.get(name, held.get("inputs") if alone else None)
    if found is None:
        raise DataError(
            f"{_FORM}, but {str(path)!r} has no {name!r}; it holds {', '.join(sorted(held))}"
        )
    if found.shape[1:] != like.shape[1:] or found.dtype != like.dtype:
        raise DataError(
            f"the network takes {name!r} as {like.dtype} {['N', *like.shape[1:]]}, but "
            f"{str(path)!r} has {found.dtype} {list(found.shape)}"
        )
    return found


def _batches(
    inputs: Sequence[Tensor], targets: Tensor | None, most: int | None = None
) -> list[Any]:
    found = []
    for start in range(0, min(len(inputs[0]), most or len(inputs[0])), _SIZE):
        part = tuple(t[start : start + _SIZE] for t in inputs)
        given = part[0] if len(part) == 1 else part
        found.append((given, None if targets is None else targets[start : start + _SIZE]))
    return found
