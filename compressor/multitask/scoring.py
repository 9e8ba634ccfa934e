"""How good one architecture is for all tasks: the sum of their normalised validation losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from compressor.errors import DataError
from compressor.multitask.task import Loss, Task
from compressor.network.counting import evaluating, forward
from compressor.network.data import device_of
from compressor.progress import Progress, silent
from compressor.score.evaluate import Score, as_number
from compressor.score.judge import Judge
from compressor.score.scorer import Guide, Scorer
from compressor.search.ledger import Known
from compressor.search.steps import Probe
from compressor.search.trend import Hints
from compressor.space import Architecture


@dataclass(frozen=True)
class Measured:
    """Loss (lower is better) and score (higher is better) of a task's network."""

    loss: float
    score: float


class Gauge:
    """Measures the networks of one task; as a score it is minus the loss.

    Attributes:
        last: what was measured last.
    """

    def __init__(self, loss: Judge | Loss, score: Score) -> None:
        """Takes a judge named "loss" or a function, and what is reported besides."""
        self.last = Measured(math.nan, math.nan)
        self._loss, self._score = loss, score

    def __call__(self, model: nn.Module) -> float:
        """Minus the loss."""
        self.last = self.measure(model)
        return -self.last.loss

    def measure(self, model: nn.Module) -> Measured:
        """Loss and score of a network, in evaluation mode; its modes come back."""
        loss, score = self._loss, self._score
        if isinstance(loss, Judge) and isinstance(score, Judge) and loss.batches is score.batches:
            return _both(loss, score, model)
        with evaluating(model):
            sign = -1 if isinstance(loss, Judge) else 1
            return Measured(sign * as_number(loss(model)), as_number(score(model)))


def _both(loss: Judge, score: Judge, model: nn.Module) -> Measured:
    """In one pass over the data."""
    losses, scores = [], []
    with evaluating(model), torch.no_grad():
        for number, inputs, targets in loss.inputs(device_of(model)):
            outputs = forward(model, inputs)
            losses.append(loss.values(number, outputs, targets))
            scores.append(score.values(number, outputs, targets))
    return Measured(-float(torch.cat(losses).mean()), float(torch.cat(scores).mean()))


def require_positive(task: Task, base: Measured) -> None:
    """Raises `DataError` unless losses can be divided by the original's."""
    if not (math.isfinite(base.loss) and base.loss > 0):
        raise DataError(
            f"losses are divided by the original network's, which must be above 0, but its loss "
            f"is {base.loss}; give loss(model) -> float that is, or validation data on which the "
            f"network of {task.name!r} is not perfect"
        )


class JointScorer:
    """Scores architectures for all tasks: minus the sum of importance × loss / original's loss."""

    note = ""

    def __init__(
        self,
        scorers: Sequence[Scorer],
        gauges: Sequence[Gauge],
        bases: Sequence[Measured],
        importances: Sequence[float],
        remember: Callable[[Architecture, Sequence[Measured]], None],
    ) -> None:
        """Puts the tasks' own scorers together.

        Args:
            scorers: of the tasks, each with its gauge as the score.
            gauges: measure the tasks' networks.
            bases: of the original networks.
            importances: of the tasks.
            remember: told what each network of an architecture came to.
        """
        self._scorers, self._gauges, self._bases = scorers, gauges, bases
        self._importances, self._remember = importances, remember

    def __call__(self, architecture: Architecture) -> float:
        """The score of an architecture."""
        found: list[Measured] = []
        for scorer, gauge in zip(self._scorers, self._gauges, strict=True):
            scorer(architecture)
            found.append(gauge.last)
        if all(math.isfinite(value) for m in found for value in (m.loss, m.score)):
            self._remember(architecture, found)
        return -self.total(found)

    def total(self, found: Sequence[Measured]) -> float:
        """Sum of the normalised losses; of the original networks it is that of the importances."""
        return sum(
            importance * one.loss / base.loss
            for importance, one, base in zip(self._importances, found, self._bases, strict=True)
        )

    def resume(self, known: Known) -> None:
        """Nothing is taken over: no network is compared with another image by image."""

    def given_up(self, architecture: Architecture) -> int | None:
        """No candidate is given up: its losses are those of all images."""
        del architecture
        return None

    def guide(self, progress: Progress = silent) -> Guide:
        """What single choices cost all tasks together, each task's costs as a share of their sum.

        Empty where one of the tasks knows nothing of single choices.
        """
        guides = [scorer.guide(progress) for scorer in self._scorers]
        tables = [guide.hints for guide in guides if guide.hints is not None]
        if len(tables) < len(guides):
            return Guide()
        weights = [
            importance / (sum(map(sum, table)) or 1.0)
            for importance, table in zip(self._importances, tables, strict=True)
        ]
        probes = [guide.probe for guide in guides if guide.probe is not None]
        probe = _Probes(probes, weights) if len(probes) == len(guides) else None
        return Guide(_added(tables, weights), probe)


@dataclass(frozen=True)
class _Probes:
    probes: Sequence[Probe]
    weights: Sequence[float]

    def __call__(self, architecture: Architecture) -> Hints:
        return _added([probe(architecture) for probe in self.probes], self.weights)


def _added(tables: Sequence[Hints], weights: Sequence[float]) -> Hints:
    return tuple(
        tuple(
            sum(weight * value for weight, value in zip(weights, values, strict=True))
            for values in zip(*rows, strict=True)
        )
        for rows in zip(*tables, strict=True)
    )
