"""Passes over a user's batches: the same each time, made of numbers, and whole; else an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.errors import CompressorError, DataError
from compressor.network.data import Batches, keep, split, steady

_REMEDY = (
    "neither shuffle nor change it at random (torch's own generator is held fast, others are "
    "not), or hand over a list"
)


class Watched:
    """Batches that are looked at in every pass.

    A run reads its data many times: to recognise itself when it resumes, and to compare networks
    with each other. What differs from pass to pass would make both wrong in silence.
    """

    def __init__(self, batches: Batches, what: str, *, same: bool = True) -> None:
        """Reads nothing yet.

        Args:
            batches: the user's.
            what: how to call them in an error, for example "calibration data".
            same: whether every pass must bring the same; training data may be shuffled.
        """
        self._batches, self._what, self._same = batches, what, same
        self._seen: list[tuple[Tensor, ...]] = []
        self._count: int | None = None

    def __iter__(self) -> Iterator[Any]:
        number = 0
        for number, batch in enumerate(self._read(), start=1):
            marks = _marks(batch, f"batch {number} of {self._what}")
            if self._same:
                self._compare(number, marks)
            yield batch
        if self._same and number != (self._count if self._count is not None else number):
            raise DataError(
                f"{self._what} must be the same in every pass, but ended after {number} batches, "
                f"and after {self._count} before; {_REMEDY}"
            )
        self._count = number

    def __length_hint__(self) -> int:
        """As many as the batches say."""
        known = length_hint(self._batches, -1)
        return known if known >= 0 else NotImplemented

    def _read(self) -> Iterator[Any]:
        number = 0
        try:
            for batch in self._batches:
                number += 1
                yield batch
        except CompressorError:
            raise
        except Exception as error:
            raise DataError(
                f"{self._what} must give its batches, but after {number} of them it raised "
                f"{type(error).__name__}: {error}"
            ) from error

    def _compare(self, number: int, marks: tuple[Tensor, ...]) -> None:
        if self._count is not None and number > self._count:
            raise DataError(
                f"{self._what} must be the same in every pass, but gave more than the "
                f"{self._count} batches of the pass before; {_REMEDY}"
            )
        if number > len(self._seen):
            self._seen.append(marks)
            return
        before = self._seen[number - 1]
        same = len(before) == len(marks) and all(
            a.shape == b.shape and torch.allclose(a, b, rtol=1e-6, atol=0.0)
            for a, b in zip(before, marks, strict=True)
        )
        if not same:
            raise DataError(
                f"{self._what} must be the same in every pass, but batch {number} has other values "
                f"than in the pass before; {_REMEDY}"
            )


def watched(data: Any, what: str, *, same: bool = True) -> Batches:
    """What `compressor.network.data.keep` makes of a user's batches, watched in every pass.

    With `same`, a loader that shuffles with torch's generator is held to one order.

    Raises:
        DataError: see `keep`, and `Watched`.
    """
    if isinstance(data, Iterator):
        return keep(iter(list(Watched(data, what, same=same))), what)
    if isinstance(data, Watched | Tensor) or not isinstance(data, Iterable):
        return keep(data, what)
    return keep(Watched(steady(data) if same else data, what, same=same), what)


def _marks(batch: Any, which: str) -> tuple[Tensor, ...]:
    """The sum of every input of a batch, and of every target: cheap, and other where they are.

    Raises:
        DataError: an input or a target is NaN or infinite; or the batch has another form.
    """
    inputs, targets = split(batch)
    named = [*(("input", x) for x in inputs), *([] if targets is None else [("target", targets)])]
    return tuple(_sums(tensor, kind, which) for kind, tensor in named)


def _sums(tensor: Tensor, kind: str, which: str) -> Tensor:
    values = tensor.detach()
    rows = (
        values.reshape(len(values), -1) if values.dim() and len(values) else values.reshape(1, -1)
    )
    sums = rows.sum(1, dtype=torch.complex128 if values.is_complex() else torch.float64).cpu()
    # The sum of what is finite may not be; the sum of anything else never is.
    if not bool(torch.isfinite(sums).all()) and not bool(torch.isfinite(values).all()):
        place = int((~torch.isfinite(rows).all(1)).nonzero()[0, 0])
        raise DataError(
            f"every number of the data must be finite, but {kind} {place} of {which} holds NaN or "
            "infinite values; leave it out or clean it"
        )
    return sums.nan_to_num()


def require_finite(model: nn.Module) -> None:
    """Returns if no weight of the network is NaN or infinite.

    Parameters and BatchNorm statistics are looked at; other buffers may hold infinities on
    purpose, as the masks of attention do.

    Raises:
        DataError: one is; the message names the tensor.
    """
    statistics = (
        (f"{path}.{name}".lstrip("."), buffer)
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name, buffer in module.named_buffers(recurse=False)
    )
    for name, tensor in (*model.named_parameters(), *statistics):
        wrong = int((~torch.isfinite(tensor)).sum())
        if wrong:
            raise DataError(
                f"every weight of the network must be finite, but {wrong} of the "
                f"{tensor.numel()} values of {name!r} are NaN or infinite; load other weights"
            )
