"""Batches as users hand them over: inputs alone, or inputs with targets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from compressor.errors import DataError

_ALIKE = 1e-4  # largest difference that the order of summation may make, by the output's scale

Inputs: TypeAlias = tuple[Tensor, ...]
Batches: TypeAlias = Iterable[Any]

_FORMS = (
    "a batch is a tensor [N, …], a pair (inputs, targets) where inputs is a tensor or a tuple of "
    "tensors, or (inputs,) without targets"
)


def as_inputs(example: Any) -> Inputs:
    """The example input as a tuple of tensors.

    Raises:
        DataError: it is neither a tensor nor a tuple or list of tensors.
    """
    if isinstance(example, Tensor):
        return (example,)
    if (
        isinstance(example, tuple | list)
        and example
        and all(isinstance(t, Tensor) for t in example)
    ):
        return tuple(example)
    raise DataError(
        "an example input must be a tensor [N, …] or a tuple of tensors, "
        f"but got {type(example).__name__}"
    )


def split(batch: Any) -> tuple[Inputs, Tensor | None]:
    """A batch as inputs and targets.

    Raises:
        DataError: the batch has neither form.
    """
    if isinstance(batch, Tensor):
        return (batch,), None
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        inputs, targets = batch if len(batch) == 2 else (batch[0], None)
        if isinstance(targets, Tensor | None) and isinstance(inputs, Tensor | tuple | list):
            return as_inputs(inputs), targets
    parts = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
    raise DataError(f"{_FORMS}, but got {type(batch).__name__}{parts}")


def keep(data: Any, what: str) -> Batches:
    """Batches that can be read more than once; one-shot iterators are read into a list.

    Args:
        data: the user's iterable.
        what: how to call it in an error, for example "calibration data".

    Raises:
        DataError: it is no iterable, or holds no batch.
    """
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise DataError(
            f"{what} must be an iterable of batches, but got {type(data).__name__}; {_FORMS}"
        )
    batches = list(data) if isinstance(data, Iterator) else data
    first = next(iter(batches), None)
    if first is None:
        raise DataError(f"{what} must hold at least one batch, but is empty")
    inputs, _ = split(first)
    if any(t.dim() == 0 or t.shape[0] == 0 for t in inputs):
        raise DataError(
            f"every batch of {what} must hold at least one input, but the first is empty"
        )
    return batches


class _Steady:
    """Batches that come in the same order, with the same random changes, in every pass."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            iterator = iter(self._batches)
            state = torch.get_rng_state()
        while True:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                state = torch.get_rng_state()
            yield batch


def steady(batches: Batches) -> Batches:
    """The same batches in every pass, also from a loader that shuffles with torch's generator.

    A run is recognised by its calibration data, and candidates are compared on the same data.
    torch's generator is left as it was.
    """
    plain = isinstance(batches, list | tuple | Tensor | Iterator)
    return batches if plain or not isinstance(batches, Iterable) else _Steady(batches)


def divided(calibration: Batches) -> tuple[Batches, Batches]:
    """Three quarters to calibrate with, and a quarter to judge by, where only one set was given.

    A network may not be judged by the images that its weights were refitted to.

    Raises:
        DataError: there is only one input.
    """
    batches = list(calibration)
    judging = len(batches) // 4
    if judging:
        return batches[:-judging], batches[-judging:]
    inputs, targets = split(batches[-1])
    here = len(inputs[0]) - max(1, len(inputs[0]) // 4)
    if here < 1:
        raise DataError(
            "calibration data must hold at least two inputs where no validation data is given, "
            "one to calibrate with and one to judge by, but holds one; give more"
        )
    first, last = (
        (tuple(x[part] for x in inputs), None if targets is None else targets[part])
        for part in (slice(None, here), slice(here, None))
    )
    return [*batches[:-1], first], [last]


def size_of(inputs: Inputs) -> int:
    """How many inputs a batch holds."""
    return inputs[0].shape[0] if inputs[0].dim() else 1


def part_of(inputs: Inputs, part: slice) -> Inputs:
    """Some of a batch; what has no batch dimension stays whole."""
    size = size_of(inputs)
    return tuple(x[part] if x.dim() and x.shape[0] == size else x for x in inputs)


def slices(begin: int, end: int, most: int) -> list[slice]:
    """Parts of a range, each of at most so many."""
    return [slice(i, min(i + most, end)) for i in range(begin, end, most)]


def alike(one: Any, other: Any) -> bool:
    """Whether two outputs are tensors of one form and equal but for the order of summation."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    one, other = one.double(), other.double()
    scale = float(one.abs().max()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=_ALIKE * scale)


def on(device: torch.device, tensors: Inputs) -> Inputs:
    """The tensors on a device."""
    return tuple(t.to(device) for t in tensors)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lives; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def tensors_hash(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in named:
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Contents:
    """What batches hold.

    Attributes:
        sha256: over all inputs and targets, in order.
        batches: how many.
        inputs: in all of them together.
        shapes: of the tensors of one input of the first batch, without the batch.
        targets: whether the first batch has any.
    """

    sha256: str
    batches: int
    inputs: int
    shapes: tuple[tuple[int, ...], ...]
    targets: bool


def contents(batches: Batches) -> Contents:
    """Reads all batches once.

    Raises:
        DataError: there is no batch, or one has another form.
    """
    sizes: list[int] = []
    forms: list[tuple[tuple[tuple[int, ...], ...], bool]] = []

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for number, batch in enumerate(batches):
            inputs, targets = split(batch)
            if not sizes:
                shapes = tuple(tuple(t.shape[1:]) for t in inputs)
                forms.append((shapes, targets is not None))
            sizes.append(size_of(inputs))
            yield from ((f"{number}", t) for t in inputs)
            if targets is not None:
                yield f"{number}y", targets

    digest = tensors_hash(tensors())
    if not forms:
        raise DataError("data must hold at least one batch, but a pass over it gave none")
    return Contents(digest, len(sizes), sum(sizes), *forms[0])


def batches_hash(batches: Batches) -> str:
    """SHA-256 over all inputs and targets, in order; see `contents`."""
    return contents(batches).sha256
