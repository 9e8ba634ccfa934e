"""What a run was calibrated, judged and trained with, as plain values for its readers."""

from __future__ import annotations

from operator import length_hint

from compressor.network.data import Batches, Contents, contents, split
from compressor.report.result import DataRow
from compressor.run.request import Request

CALIBRATION, VALIDATION, TRAINING = "calibration", "validation", "training"
_SHARED = "a part of the calibration data that was given, kept apart: there was no validation data"
_TAKEN = "the calibration data: there was no training data"
_UNREAD = "not read as a whole before training, so neither counted nor hashed"


def data_used(request: Request) -> tuple[DataRow, ...]:
    """Calibration, validation and training data of a run, in that order, where there is any.

    Calibration and validation data are read once; of training data, which may take hours, only the
    first batch is.

    Raises:
        DataError: a batch has another form.
    """
    rows = [_row(CALIBRATION, contents(request.calibration))]
    if request.validation is not None:
        note = _SHARED if request.shared else ""
        rows.append(_row(VALIDATION, contents(request.validation), note))
    if request.options.finetune or request.options.score_epochs:
        rows.append(_training(request, rows[0]))
    return tuple(rows)


def hash_of(rows: tuple[DataRow, ...], use: str) -> str:
    """The hash of the data for a use; empty where there is none."""
    return next((row.sha256 for row in rows if row.use == use), "")


def _row(use: str, found: Contents, note: str = "") -> DataRow:
    shapes = tuple("x".join(map(str, shape)) for shape in found.shapes)
    return DataRow(use, found.batches, found.inputs, shapes, found.targets, found.sha256, note)


def _training(request: Request, calibration: DataRow) -> DataRow:
    data = request.training
    if data is None:
        return DataRow(
            TRAINING, calibration.batches, calibration.inputs, calibration.shapes,
            calibration.targets, calibration.sha256, _TAKEN,
        )  # fmt: skip
    inputs, targets = split(next(iter(data)))
    shapes = tuple("x".join(map(str, t.shape[1:])) for t in inputs)
    return DataRow(TRAINING, _count(data), None, shapes, targets is not None, note=_UNREAD)


def _count(data: Batches) -> int | None:
    try:
        known = length_hint(data, -1)
    except TypeError:  # a loader over a stream has a length, and does not tell it
        return None
    return known if known >= 0 else None
