"""How good a network is: BatchNorm recalibrated, then scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.counting import evaluating, forward
from compressor.data import Batches, device_of, on, split
from compressor.errors import CompressorError, DataError

Score: TypeAlias = Callable[[nn.Module], float]


def recalibrate(model: nn.Module, calibration: Batches) -> None:
    """Re-estimates BatchNorm statistics in place, as the plain mean over the batches.

    A cut changes the distribution that every later BatchNorm sees; statistics of the original
    make the accuracy right after cutting meaningless (EagleEye, arXiv 2007.02491).

    Args:
        model: changed in place; a network without BatchNorm is left as it is.
        calibration: batches; targets are ignored.

    Raises:
        DataError: a batch does not fit, or is too small to estimate a variance.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    with evaluating(model), _estimating(norms):
        for batch in calibration:
            inputs, _ = split(batch)
            forward(model, on(device_of(model), inputs))


@contextmanager
def _estimating(norms: list[_BatchNorm]) -> Iterator[None]:
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.training = True
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.training = False


def top1(model: nn.Module, validation: Batches) -> float:
    """Share of validation images whose largest logit is the target, in 0..1.

    Args:
        model: returns logits `[N, classes]`; not touched.
        validation: batches with integer targets `[N]`.

    Raises:
        DataError: the output is no logits, or targets are missing or of another length.
    """
    right = total = 0
    with evaluating(model):
        for batch in validation:
            inputs, targets = split(batch)
            logits = forward(model, on(device_of(model), inputs))
            _check_classification(logits, targets)
            assert targets is not None  # noqa: S101  (checked above; for the type checker)
            right += int((logits.argmax(dim=1).cpu() == targets.cpu()).sum())
            total += targets.shape[0]
    if total == 0:
        raise DataError("validation data must hold at least one batch, but is empty")
    return right / total


def _check_classification(logits: Any, targets: Tensor | None) -> None:
    remedy = "define score(model) -> float, higher is better"
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise DataError(
            f"the default score (top-1) reads logits [N, classes], but the model returned {got}; "
            f"{remedy}"
        )
    if targets is None:
        raise DataError(
            "the default score (top-1) needs (inputs, targets) batches, but validation data "
            f"holds inputs alone; add targets or {remedy}"
        )
    if targets.dim() != 1 or targets.shape[0] != logits.shape[0] or targets.is_floating_point():
        raise DataError(
            f"the default score (top-1) needs integer targets [{logits.shape[0]}], but got "
            f"{targets.dtype} {list(targets.shape)}; {remedy}"
        )


def checked_score(score: Score, model: nn.Module) -> float:
    """The score of the original network, before anything is started.

    Raises:
        DataError: the user's score raises, or does not return a finite number. Without a score
            for the original, no candidate can have one.
    """
    try:
        value = score(model)
    except CompressorError:
        raise
    except Exception as error:
        raise DataError(
            "the score must work on the original network, but raised "
            f"{type(error).__name__}: {error}"
        ) from error
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            "the score must return a finite number, but for the original network it returned "
            f"{value!r}"
        )
    return number
