"""How good a network is: BatchNorm recalibrated, then scored."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.errors import CompressorError, DataError
from compressor.network.counting import evaluating, forward
from compressor.network.data import Batches, device_of, on, split

Score: TypeAlias = Callable[[nn.Module], float]


def recalibrate(model: nn.Module, calibration: Batches) -> None:
    """Re-estimates BatchNorm statistics in place, as the plain mean over the batches.

    A cut changes the distribution that every later BatchNorm sees; statistics of the original
    make the accuracy right after cutting meaningless (EagleEye, arXiv 2007.02491).

    Args:
        model: changed in place; a network without BatchNorm is left as it is.
        calibration: batches; targets are ignored.

    Raises:
        DataError: there is no batch, one does not fit, or one is too small to estimate a variance.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    seen = False
    with evaluating(model), _estimating(norms):
        for batch in calibration:
            inputs, _ = split(batch)
            forward(model, on(device_of(model), inputs))
            seen = True
    if not seen:
        raise DataError("calibration data must hold at least one batch, but is empty")


@contextmanager
def _estimating(norms: list[_BatchNorm]) -> Iterator[None]:
    momenta = [norm.momentum for norm in norms]
    states = [copy.deepcopy(norm.state_dict()) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.training = True
    try:
        yield
    finally:
        for norm, momentum, state in zip(norms, momenta, states, strict=True):
            norm.momentum = momentum
            norm.training = False
            if not norm.num_batches_tracked:  # an auxiliary head that saw nothing keeps what it had
                norm.load_state_dict(state)


def checked_score(score: Score, model: nn.Module, which: str = "the original network") -> float:
    """The score of a network on which a run depends, in evaluation mode; its modes come back.

    Args:
        score: the user's function.
        model: the network.
        which: how to call it in an error.

    Raises:
        DataError: the user's score raises, or does not return a finite number. Without a score
            for the original, no candidate can have one.
    """
    value = attempt(score, model, which)
    if not math.isfinite(value):
        raise DataError(
            f"the score must return a finite number, but for {which} it returned {value}"
        )
    return value


def as_number(value: Any) -> float:
    """A score as users return it: a number, or a tensor of one element."""
    return float(value.item() if isinstance(value, Tensor) else value)


def attempt(score: Score, model: nn.Module, which: str) -> float:
    """The score of a network in evaluation mode, which may be NaN; its modes come back.

    Raises:
        DataError: the user's score raises, or returns no number.
    """
    try:
        with evaluating(model):
            value = score(model)
    except CompressorError:
        raise
    except Exception as error:
        raise DataError(
            f"the score must work on {which}, but raised {type(error).__name__}: {error}"
        ) from error
    try:
        return as_number(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the score must return a finite number, but for {which} it returned {value!r:.200}"
        ) from error
