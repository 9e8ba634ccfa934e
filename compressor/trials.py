"""Scores candidates image by image, without doing what cannot change the outcome.

A candidate is assembled from the library, its cut consumers are refitted on its own activations
(a few hundred images are enough to tell candidates apart), and it is shown the images of the
judge until it is clear that it is worse than the best one so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from compressor.assembly import Assembler
from compressor.counting import evaluating
from compressor.data import device_of
from compressor.judge import Judge
from compressor.outcome import Outcome
from compressor.refit import Refitter
from compressor.space import Architecture

_ENOUGH = 200  # images before a candidate may be given up
_SURE = 4.0  # standard errors by which it must then be worse


class Trials:
    """Scores of one network's architectures, by one judge.

    A candidate is given up when the mean of its differences from the best one so far, image by
    image, is `_SURE` standard errors below zero after at least `_ENOUGH` images; its score is
    then the best one's plus that mean.

    Attributes:
        images: how many images candidates were shown so far.
    """

    def __init__(
        self,
        assembler: Assembler,
        refitter: Refitter,
        judge: Judge,
        eligible: Callable[[Architecture], bool],
    ) -> None:
        """Remembers nothing yet.

        Args:
            assembler: makes the candidates.
            refitter: refits them.
            judge: scores them.
            eligible: whether an architecture may be what others are compared with.
        """
        self.images = 0
        self._assembler = assembler
        self._refitter = refitter
        self._judge = judge
        self._eligible = eligible
        self._best: tuple[float, Tensor] | None = None
        self._remembered: Architecture | None = None

    def resume(self, known: Mapping[Architecture, Outcome]) -> None:
        """Takes the best of an interrupted run as the one to compare with."""
        scored = [(o.score, a) for a, o in known.items() if o.score is not None]
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
        self._assembler.spoil(self._refitter.consumers(network, architecture))
        return network

    def _scored(self, architecture: Architecture) -> float:
        network = self.network(architecture)
        values: list[Tensor] = []
        with evaluating(network), torch.no_grad():
            for number, inputs, targets in self._judge.inputs(device_of(network)):
                values.append(self._judge.values(number, network(*inputs), targets))
                self.images += len(values[-1])
                behind = self._behind(torch.cat(values))
                if behind is not None:
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
