"""Scores candidates image by image, without doing what cannot change the outcome.

A candidate is assembled from the library, its cut consumers are refitted on its own activations
(a hundred images are enough to tell candidates apart), and it is shown the images of the
judge until it is clear that it is worse than the best one so far.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from compressor.assembly import Assembler
from compressor.counting import evaluating
from compressor.data import Batches, Inputs, device_of, split
from compressor.evaluate import Score, as_number
from compressor.judge import Judge
from compressor.ledger import Known
from compressor.refit import Refitter
from compressor.space import Architecture

_IMAGES = 128  # that candidates are refitted to
_ENOUGH = 128  # images before a candidate may be given up
_SURE = 3.0  # standard errors by which it must then be worse


def few_images(calibration: Batches) -> list[Inputs]:
    """The first inputs of the calibration data, as many as tell candidates apart."""
    found: list[Inputs] = []
    left = _IMAGES
    for batch in calibration:
        inputs, _ = split(batch)
        size = inputs[0].shape[0] if inputs[0].dim() else 1
        whole = size <= left
        found.append(inputs if whole else tuple(_first(x, size, left) for x in inputs))
        left -= size
        if left <= 0:
            break
    return found


def _first(x: Tensor, size: int, count: int) -> Tensor:
    """The first of a batch; what has no batch dimension stays whole."""
    return x[:count] if x.dim() and x.shape[0] == size else x


class Trials:
    """Scores of one network's architectures, by one judge.

    A candidate is given up when the mean of its differences from the best one so far, image by
    image, is `_SURE` standard errors below zero after at least `_ENOUGH` images; its score is
    then the best one's plus that mean.

    Attributes:
        images: how many images candidates were shown so far.
        given_up: candidates that were given up, and after how many images.
    """

    def __init__(
        self,
        assembler: Assembler,
        refitter: Refitter,
        judge: Score,
        eligible: Callable[[Architecture], bool],
    ) -> None:
        """Remembers nothing yet.

        Args:
            assembler: makes the candidates.
            refitter: refits them.
            judge: scores them; a `Judge` image by image, any other function in one go.
            eligible: whether an architecture may be what others are compared with.
        """
        self.images = 0
        self.given_up: dict[Architecture, int] = {}
        self._assembler = assembler
        self._refitter = refitter
        self._judge = judge
        self._eligible = eligible
        self._best: tuple[float, Tensor] | None = None
        self._remembered: Architecture | None = None

    def resume(self, known: Known) -> None:
        """Takes the best of an interrupted run as the one to compare with, image by image."""
        if not isinstance(self._judge, Judge):
            return
        first = [(a, outcomes[0]) for a, outcomes in known.items() if outcomes]
        scored = [(o.score, a) for a, o in first if o.score is not None]
        eligible = [(score, a) for score, a in scored if self._eligible(a)]
        # Among equals the earliest, as if the run had not been interrupted.
        self._remembered = max(eligible, key=lambda pair: pair[0])[1] if eligible else None

    def __call__(self, architecture: Architecture) -> float:
        """The score of an architecture."""
        if self._remembered is not None:
            remembered, self._remembered = self._remembered, None
            self._scored(remembered)
        return self._scored(architecture)

    def network(self, architecture: Architecture) -> nn.Module:
        """The candidate as it is scored; valid until the next call."""
        network = self._assembler.assemble(architecture)
        # Told before: a refit that fails half-way has changed some of them.
        self._assembler.spoil(self._refitter.touched(architecture))
        self._refitter.consumers(network, architecture)
        return network

    def _scored(self, architecture: Architecture) -> float:
        network = self.network(architecture)
        if not isinstance(self._judge, Judge):
            # Someone else's function may train or change what it is given.
            return as_number(self._judge(copy.deepcopy(network)))
        values: list[Tensor] = []
        with evaluating(network), torch.no_grad():
            for number, inputs, targets in self._judge.inputs(device_of(network)):
                values.append(self._judge.values(number, network(*inputs), targets))
                self.images += len(values[-1])
                behind = self._behind(torch.cat(values))
                if behind is not None:
                    self.given_up[architecture] = sum(map(len, values))
                    return behind
        return self._noted(architecture, torch.cat(values))

    def _behind(self, values: Tensor) -> float | None:
        """The estimated score of a candidate that is clearly worse than the best one."""
        if self._best is None or not _ENOUGH <= len(values) < len(self._best[1]):
            return None
        less = values - self._best[1][: len(values)]
        mean, error = float(less.mean()), float(less.std()) / math.sqrt(len(values))
        return self._best[0] + mean if mean + _SURE * error < 0 else None

    def _noted(self, architecture: Architecture, values: Tensor) -> float:
        score = float(values.mean())
        if (self._best is None or score > self._best[0]) and self._eligible(architecture):
            self._best = (score, values)
        return score
