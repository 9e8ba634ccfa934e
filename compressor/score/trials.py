"""Scores candidates image by image, without doing what cannot change the outcome.

A candidate is assembled from the library, its cut consumers are refitted on its own activations
(a hundred images are enough to tell candidates apart), and it is shown the images of the
judge until it is clear that it is not much better than the best one so far.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.network.blocks import drop
from compressor.network.counting import evaluating
from compressor.network.data import Inputs, device_of, size_of, slices
from compressor.network.replay import Replay
from compressor.refit.assembly import Assembler
from compressor.refit.sequence import Refitter
from compressor.score.evaluate import Score, as_number
from compressor.score.few import at_once, divisible, out_of_memory
from compressor.score.judge import Judge
from compressor.search.ledger import Known
from compressor.space import Architecture

_ENOUGH = 128  # images before a candidate may be given up
_SURE = 2.5  # standard errors at the edge of what it may still turn out to be
_MUCH = 0.05  # of what the best one lacks: less than images by the thousand can tell apart


@dataclass(frozen=True)
class Standard:
    """What candidates are compared with: a network's score, and the values of all images, `[N]`."""

    score: float
    values: Tensor


class Trials:
    """Scores of one network's architectures, by one judge.

    After at least `_ENOUGH` images a candidate is given up when the mean of its differences from
    the best one so far, image by image, is below zero, and even `_SURE` standard errors above that
    it would make up less than `_MUCH` of what the best one lacks. Its score is then the best one's
    plus that mean.

    Attributes:
        images: how many images candidates were shown so far.
        given_up: candidates that were given up, and after how many images.
        most: images that are shown at once at most, once memory has run out; None before.
        seen: the values of all images for the last candidate; None where it was given up, or where
            the judge does not go image by image.
    """

    def __init__(
        self,
        original: nn.Module,
        assembler: Assembler,
        refitter: Refitter,
        judge: Score,
        eligible: Callable[[Architecture], bool],
    ) -> None:
        """Remembers nothing yet.

        Args:
            original: the network that candidates are made from; not touched.
            assembler: makes the candidates.
            refitter: refits them.
            judge: scores them; a `Judge` image by image, any other function in one go.
            eligible: whether an architecture may be what others are compared with.
        """
        self.images = 0
        self.given_up: dict[Architecture, int] = {}
        self.most: int | None = None
        self.seen: Tensor | None = None
        self._shown = 0  # images in the last part
        self._assembler = assembler
        self._original = original
        self._divisible: bool | None = None
        self._refitter = refitter
        self._judge = judge
        self._eligible = eligible
        self._prefix = Replay(assembler.network, refitter.calls)
        self._standing = 0  # the tick up to which the prefix is that of the last candidate
        self._last: Architecture | None = None
        self._best: Standard | None = None
        self._fixed = False  # whether someone else says what the best one is
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

    def compare_with(self, standard: Standard | None) -> None:
        """From now on candidates are compared with this, and not with the best one so far."""
        self._best, self._fixed, self._remembered = standard, True, None

    def __call__(self, architecture: Architecture) -> float:
        """The score of an architecture.

        Where memory runs out it is shown fewer images at once, and so are all that follow; one
        image at a time, or batches that cannot be taken apart, and what was raised goes on.
        """
        while True:
            try:
                if self._remembered is not None:
                    self._scored(self._remembered)
                    self._remembered = None
                return self._scored(architecture)
            except Exception as error:
                if not out_of_memory(error) or not self._fewer():
                    raise

    def network(self, architecture: Architecture) -> nn.Module:
        """The candidate as it is scored; valid until the next call.

        What comes before the first difference to the candidate before stays as it is.
        """
        self._refresh(architecture)
        return self._assembler.network

    def judged(self, architecture: Architecture, judge: Judge) -> float:
        """The score of a candidate by another judge, on images that fit into memory.

        What comes before the first difference to the candidate before is not computed again.
        """
        self._refresh(architecture)
        network, done = self._assembler.network, self._refitter.calls.ended(self._standing)
        found = []
        with evaluating(network), torch.no_grad():
            for number, inputs, targets in judge.inputs(device_of(network)):
                outputs = self._prefix.run((id(judge), number), inputs, done)
                found.append(judge.values(number, outputs, targets))
        return float(torch.cat(found).mean())

    def _refresh(self, architecture: Architecture) -> None:
        """Makes the candidate, from where it differs from the one before."""
        last, self._last = self._last, None
        changed = self._assembler.changed
        since = 0 if last is None else self._refitter.since(changed(last, architecture))
        if since < self._standing:
            self._prefix.keep(())
        self._standing = since
        touched = self._refitter.touched(architecture)
        stale = set(self._refitter.touched(architecture, since))
        network = self._assembler.assemble(architecture, set(touched) - stale)
        # Told before: a refit that fails half-way has changed some of them.
        self._assembler.spoil(stale)
        calls = self._refitter.calls
        replay = Replay(network, calls, self._prefix, calls.ended(since))
        self._refitter.consumers(network, architecture, since, replay)
        self._last = architecture

    def _scored(self, architecture: Architecture) -> float:
        self.seen = None
        network = self.network(architecture)
        if not isinstance(self._judge, Judge):
            # Someone else's function may train or change what it is given.
            own = copy.deepcopy(network)
            drop(own, self._assembler.dropped(architecture))
            return as_number(self._judge(own))
        values: list[Tensor] = []
        with evaluating(network), torch.no_grad():
            for found in self._looks(self._judge, network):
                values.append(found)
                self.images += len(found)
                behind = self._behind(torch.cat(values), self._judge.perfect)
                if behind is not None:
                    self.given_up[architecture] = sum(map(len, values))
                    return behind
        return self._noted(architecture, torch.cat(values))

    def _looks(self, judge: Judge, network: nn.Module) -> Iterator[Tensor]:
        """The judge's values, a few images at a time where batches may be taken apart."""
        for number, inputs, targets in judge.inputs(device_of(network)):
            for part in self._parts(inputs):
                shown = inputs if part is None else tuple(x[part] for x in inputs)
                wanted = targets if part is None or targets is None else targets[part]
                yield judge.values(number, network(*shown), wanted, part)

    def _fewer(self) -> bool:
        """Halves how many images are shown at once; False where there is nothing to halve."""
        self._prefix.keep(())
        self._last, self._standing = None, 0
        if self._divisible is False or not isinstance(self._judge, Judge) or self._shown < 2:
            return False
        self.most = self._shown = self._shown // 2
        return True

    def _parts(self, inputs: Inputs) -> list[slice | None]:
        size = size_of(inputs)
        most = at_once(inputs) if self.most is None else min(self.most, at_once(inputs))
        parts = slices(0, size, most)
        self._shown = min(size, most)
        if len(parts) == 1 or any(x.shape[:1] != (size,) for x in inputs):
            return [None]
        if self._divisible is None:
            # Once memory has run out, not with the whole batch.
            some = inputs if self.most is None else tuple(x[: 2 * most] for x in inputs)
            self._divisible = divisible(self._original, some, slices(0, size_of(some), most))
        return [*parts] if self._divisible else [None]

    def _behind(self, values: Tensor, perfect: float) -> float | None:
        """The estimated score of a candidate that is not much better than the best one."""
        best = self._best
        if best is None or not _ENOUGH <= len(values) < len(best.values):
            return None
        less = values - best.values[: len(values)]
        mean, error = float(less.mean()), float(less.std()) / math.sqrt(len(values))
        hopeless = mean < 0 and mean + _SURE * error < _MUCH * (perfect - best.score)
        return best.score + mean if hopeless else None

    def _noted(self, architecture: Architecture, values: Tensor) -> float:
        self.seen, score = values, float(values.mean())
        better = not self._fixed and (self._best is None or score > self._best.score)
        if better and self._eligible(architecture):
            self._best = Standard(score, values)
        return score
