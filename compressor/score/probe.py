"""What the choices next to a network's own would cost there.

`compressor.score.sensitivity` measures every choice alone in the original network. Deep inside a
budget other things matter: what one layer lost, others must make up for. So the same question is
asked again around the best network found so far, layer by layer, on few unlabelled images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compressor.progress import Event, Progress, silent
from compressor.score.judge import Judge
from compressor.score.sensitivity import rows_of, with_option
from compressor.score.trials import Trials
from compressor.search.trend import Hints
from compressor.space import Architecture, Choice, SearchSpace

MOST = 512
"""Images on which a probe compares: beyond, more of them tell less than they cost."""
_FEWEST = 128  # with fewer it does not tell neighbours apart
WORTH = 8
"""Evaluations that a probe may take."""


@dataclass(frozen=True)
class Share:
    """Scores of the neighbours of a network in some of its layers.

    Attributes:
        layers: their numbers.
        rows: for each of them the scores, by option.
        seconds: that each of them took.
        own: the score of the network itself, where it was asked for.
        own_seconds: that this took.
    """

    layers: range
    rows: tuple[Mapping[int, float], ...]
    seconds: tuple[float, ...]
    own: float | None = None
    own_seconds: float = 0.0


class Probe:
    """Measures the neighbours of a network: those that differ from it in one layer, by a step."""

    def __init__(
        self, trials: Trials, space: SearchSpace, judge: Judge, progress: Progress = silent
    ) -> None:
        """Measures nothing yet.

        Args:
            trials: makes the networks.
            space: their search space.
            judge: compares with the original; needs no labels.
            progress: told after each layer.
        """
        self._trials, self._space, self._judge = trials, space, judge
        self._progress = progress

    def __call__(self, base: Architecture) -> Hints:
        """How much worse each neighbour of a network is than the network itself.

        Returns:
            For each layer and option the loss of score, below zero for a gain; 0 for the network's
            own option, infinity for options that are no neighbours.
        """
        return hints(self._space, base, [self.share(base, range(len(self._space.layers)))])

    def share(self, base: Architecture, layers: range, *, own: bool = True) -> Share:
        """Scores the neighbours of a network in some of its layers, and the network itself.

        Args:
            base: the network.
            layers: numbers in rising order.
            own: whether the network itself is scored.
        """
        start = time.perf_counter()
        score = self._trials.judged(base, self._judge) if own else None
        took = time.perf_counter() - start
        rows, seconds = [], []
        for number in layers:
            start = time.perf_counter()
            rows.append(self._scores(base, number))
            seconds.append(time.perf_counter() - start)
            name = self._space.layers[number].name
            self._progress(Event("probe", number + 1, len(self._space.layers), name))
        return Share(layers, tuple(rows), tuple(seconds), score, took)

    def _scores(self, base: Architecture, number: int) -> dict[int, float]:
        found = {}
        for option in beside(self._space.layers[number].choices, base[number]):
            single = with_option(base, number, option)
            if self._space.canonical(single) == self._space.canonical(base):
                continue  # inside of a block that is left out
            found[option] = self._trials.judged(single, self._judge)
        return found


def hints(space: SearchSpace, base: Architecture, shares: Sequence[Share]) -> Hints:
    """How much worse each neighbour is than the network, from shares that cover all layers.

    Raises:
        ValueError: none of them has scored the network itself.
    """
    own = next((share.own for share in shares if share.own is not None), None)
    if own is None:
        raise ValueError("one share must hold the score of the network itself, but none does")
    rows: dict[int, tuple[float, ...]] = {}
    for share in shares:
        for number, scores in zip(share.layers, share.rows, strict=True):
            costs = [math.inf] * len(space.layers[number].choices)
            costs[base[number]] = 0.0
            for option, score in scores.items():
                costs[option] = own - score
            rows[number] = tuple(costs)
    return tuple(rows[number] for number in range(len(space.layers)))


def affordable(neighbours: int, refitted: int, judged: int, others: int) -> int:
    """On how many images to compare, so that a probe takes no longer than a few evaluations.

    Args:
        neighbours: networks to compare.
        refitted: images that each is refitted to.
        judged: images that an evaluation is shown, after the same refit.
        others: images that there are to compare on.

    Returns:
        At most `MOST` and all there are; 0 where a probe is not worth it.
    """
    # half of the network is what each has in common with the one before
    images = int(WORTH * (refitted + judged) / (max(1, neighbours) / 2)) - refitted
    return min(MOST, others, images) if images >= min(_FEWEST, others) else 0


def beside(choices: Sequence[Choice], option: int) -> list[int]:
    """The next options with the same kernel, and with each other kernel the most alike one."""
    own = choices[option]
    found: list[int] = []
    for row in rows_of(choices):
        if option in row:
            place = row.index(option)
            found += row[max(0, place - 1) : place] + row[place + 1 : place + 2]
        else:
            found.append(min(row, key=lambda o: (_apart(choices[o], own), o)))
    return sorted(found)


def _apart(one: Choice, other: Choice) -> int:
    return abs((one.channels or 0) - (other.channels or 0))
