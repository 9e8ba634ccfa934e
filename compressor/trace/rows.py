"""The rows `M_l` of one recombination, told in full. Knows no torch.

The recombination itself (`compressor.search.recombine`) is fast and keeps no more than it needs;
here the same rows are made again, slowly, for whoever wants to see them. In a row every partial
choice (*prefix*) stands in a bucket of about equal cost; of those in one bucket that end in the
same option only the best is kept, since what follows depends on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.search.kernels import Floats
from compressor.search.moves import Recombined
from compressor.space import Architecture


@dataclass(frozen=True)
class Counts:
    """How many prefixes one layer of a recombination saw.

    Attributes:
        tried: kept prefixes of the layer before, each with every option of this one.
        beyond: of these, dropped because nothing cheap enough can follow.
        beaten: of these, dropped because another one in the bucket with the same last option is
            expected to be better.
        kept: the rest.
        buckets: how many buckets the kept ones stand in.
    """

    tried: int
    beyond: int
    beaten: int
    kept: int
    buckets: int


@dataclass(frozen=True)
class Bucket:
    """Prefixes of about equal cost.

    Attributes:
        number: in steps of equal cost from the cheapest.
        share: its least cost as a share of the limit, the undecided layers at their cheapest.
        stood: prefixes that reached it.
        kept: those left, one for each last option.
        best: the best of them.
        value: what the model expects its options to add to the score.
    """

    number: int
    share: float
    stood: int
    kept: int
    best: Architecture
    value: float


@dataclass(frozen=True)
class Step:
    """Where the prefix of one network stood in the row of a layer, and whom it met there.

    Attributes:
        option: of the layer.
        bucket: of the prefix up to this layer.
        share: least cost of the bucket, as in `Bucket`.
        value: of the prefix.
        rivals: other prefixes of the bucket with the same last option.
        rival: the best of them, and its value; None where there was none.
        rival_value: see `rival`.
    """

    option: int
    bucket: int
    share: float
    value: float
    rivals: int
    rival: Architecture | None
    rival_value: float | None


def count(found: Recombined) -> tuple[Counts, ...]:
    """How many prefixes each layer saw; needs no effects, so it is quick."""
    width, real = found.window[1] + 1, np.isfinite(found.effects.main)
    before = np.zeros(width, dtype=np.int64)  # kept prefixes of each bucket
    before[0] = 1
    counts = []
    for steps, options in zip(found.steps, real, strict=True):
        live = np.zeros((width, len(options)), dtype=bool)
        landed = 0
        for option in np.flatnonzero(options):
            step = int(steps[option])
            if step < width:
                live[step:, option] = before[: width - step] > 0
                landed += int(before[: width - step].sum())
        tried, kept = int(before.sum() * options.sum()), int(live.sum())
        buckets = int(live.any(axis=1).sum())
        counts.append(Counts(tried, tried - landed, landed - kept, kept, buckets))
        before = live.sum(axis=1)
    return tuple(counts)


class Rows:
    """Every row of one recombination."""

    def __init__(self, found: Recombined) -> None:
        """Makes the rows again, in O(buckets * options^2 * layers) time and memory."""
        self._found = found
        self._width = found.window[1] + 1
        # value of the best prefix of each (bucket, last option), and all that reached it by the
        # option before, [width, before, option]
        self._best: list[Floats] = []
        self._reached: list[Floats] = []
        for layer in range(len(found.steps)):
            reached = self._row(layer)
            self._reached.append(reached)
            self._best.append(reached.max(axis=1))

    def buckets(self, layer: int) -> tuple[Bucket, ...]:
        """The occupied buckets of a layer's row, cheapest first."""
        best, reached = self._best[layer], self._reached[layer]
        found = []
        for number in np.flatnonzero(np.isfinite(best).any(axis=1)).tolist():
            option = int(best[number].argmax())
            found.append(
                Bucket(
                    number,
                    self._share(number),
                    int(np.isfinite(reached[number]).sum()),
                    int(np.isfinite(best[number]).sum()),
                    self._prefix(layer, number, option),
                    float(best[number, option]),
                )
            )
        return tuple(found)

    def path(self, network: Architecture) -> tuple[Step, ...]:
        """Where a network's prefixes stood; empty where one was out of reach."""
        steps, bucket, value = [], 0, 0.0
        effects = self._found.effects
        for layer, option in enumerate(network):
            bucket += int(self._found.steps[layer, option])
            value += float(effects.main[layer, option])
            before = network[layer - 1] if layer else 0
            if layer and effects.pairs is not None:
                value += float(effects.pairs[layer - 1, before, option])
            if bucket >= self._width:
                return ()
            others = self._reached[layer][bucket, :, option].copy()
            others[before] = -np.inf
            rivals = int(np.isfinite(others).sum())
            rival = int(others.argmax())
            cost = bucket - int(self._found.steps[layer, option])
            steps.append(
                Step(
                    option,
                    bucket,
                    self._share(bucket),
                    value,
                    rivals,
                    (*self._prefix(layer - 1, cost, rival), option) if rivals else None,
                    float(others[rival]) if rivals else None,
                )
            )
        return tuple(steps)

    def _row(self, layer: int) -> Floats:
        main = self._found.effects.main[layer]
        first = 1 if layer == 0 else len(main)
        reached = np.full((self._width, first, len(main)), -np.inf)
        for option in np.flatnonzero(np.isfinite(main)).tolist():
            step = int(self._found.steps[layer, option])
            if layer == 0 and step < self._width:
                reached[step, 0, option] = main[option]
            elif step < self._width:
                earlier = self._best[layer - 1][: self._width - step] + main[option]
                if (pairs := self._found.effects.pairs) is not None:
                    earlier += pairs[layer - 1][:, option]
                reached[step:, :, option] = earlier
        return reached

    def _prefix(self, layer: int, bucket: int, option: int) -> Architecture:
        """The best prefix of a bucket that ends in an option."""
        options: NDArray[np.int64] = np.zeros(layer + 1, dtype=np.int64)
        for place in range(layer, -1, -1):
            options[place] = option
            before = int(self._reached[place][bucket, :, option].argmax())
            bucket -= int(self._found.steps[place, option])
            option = before
        return tuple(options.tolist())

    def _share(self, bucket: int) -> float:
        return self._found.start + bucket * self._found.width
