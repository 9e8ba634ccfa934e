"""Makes a trace of what a search tells. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compressor.cost import Limit
from compressor.moves import (
    Asked,
    Checked,
    Drawn,
    Move,
    Picked,
    Probed,
    Recombined,
    Scored,
)
from compressor.rows import Rows, count
from compressor.space import Architecture
from compressor.trace import Evaluation, Pick, Recombination, Source, Visit
from compressor.visits import Visits

_Origin = tuple[Source, int | None]


class Recorder:
    """Watches one search; afterwards it holds what a trace is made of."""

    def __init__(self, limits: Sequence[Limit], images: Mapping[Architecture, int]) -> None:
        """Has seen nothing yet.

        Args:
            limits: of the search.
            images: candidates that were given up, and after how many images.
        """
        self.scored: list[Evaluation] = []
        self.recombinations: list[Recombination] = []
        self.pick: Pick | None = None
        self._limits, self._images = limits, images
        self._visits = Visits()
        self._numbers: dict[Architecture, int] = {}  # of the first evaluation of each network
        self._started = False  # whether networks were asked for
        self._probed = False  # whether a probe's gains are being recombined
        self._latest: Recombined | None = None
        self._offers: dict[Architecture, _Origin] = {}
        self._waiting: list[tuple[Architecture, _Origin, tuple[float, float] | None]] = []
        # only recombinations that somebody may want to see in full are kept whole
        self._whole: dict[int, Recombined] = {}
        self._of_offers: dict[int, Recombined] = {}
        self._actions: dict[type, Callable[[Any], None]] = {
            Recombined: self._recombined,
            Checked: self._checked,
            Probed: self._was_probed,
            Drawn: self._drawn,
            Asked: self._asked,
            Scored: self._was_scored,
            Picked: self._was_picked,
        }

    def __call__(self, move: Move) -> None:
        """Takes in what the search tells."""
        action = self._actions.get(type(move))
        if action is None:
            self._visits.take(move, self._numbers)
        else:
            action(move)

    @property
    def visits(self) -> tuple[Visit, ...]:
        """Visits of the published strategy."""
        return self._visits.done()

    def _recombined(self, move: Recombined) -> None:
        self._latest = move

    def _checked(self, move: Checked) -> None:
        if self._latest is None:  # not even the cheapest network is near the limits
            return
        place, source = len(self.recombinations), self._source(move.place)
        numbers = len(self._latest.networks), len(move.inside), len(move.new)
        layers = count(self._latest)
        self.recombinations.append(Recombination(len(self.scored), source, layers, *numbers))
        self._of_offers[place] = self._latest
        for network in move.new:
            self._offers.setdefault(network, (source, place))
        self._latest = None

    def _source(self, place: int) -> Source:
        if self._probed:
            return "gains of neighbours"
        if not self._started:
            return "hints"
        return "drawn effects" if place else "expected effects"

    def _was_probed(self, move: Probed) -> None:
        del move
        self._probed = True

    def _drawn(self, move: Drawn) -> None:
        self._offers.setdefault(move.architecture, ("random", None))

    def _asked(self, move: Asked) -> None:
        self._started, self._probed = True, False
        expected = move.expected or (None,) * len(move.networks)
        for network, numbers in zip(move.networks, expected, strict=True):
            known = network in self._numbers
            otherwise: _Origin = ("repeat" if known else "even", None)
            origin = otherwise if known else self._offers.get(network, otherwise)
            self._waiting.append((network, origin, numbers))
            if origin[1] is not None:
                self._whole[origin[1]] = self._of_offers[origin[1]]
        self._offers.clear()
        self._of_offers = dict(list(self._of_offers.items())[-1:])

    def _was_scored(self, move: Scored) -> None:
        origin, expected = self._origin(move.architecture)
        mean, deviation = expected or (None, None)
        self._numbers.setdefault(move.architecture, len(self.scored))
        outcome = move.outcome
        self.scored.append(
            Evaluation(
                number=len(self.scored),
                architecture=move.architecture,
                source=origin[0],
                place=origin[1],
                expected=mean,
                deviation=deviation,
                score=outcome.score,
                reason=outcome.reason,
                repeat=outcome.repeat,
                images=self._images.get(move.architecture),
                costs={t.cost.unit: float(t.cost(move.architecture)) for t in self._limits},
                inside=all(t.cost(move.architecture) <= t.high for t in self._limits),
            )
        )

    def _origin(self, network: Architecture) -> tuple[_Origin, tuple[float, float] | None]:
        for place, (waiting, origin, expected) in enumerate(self._waiting):
            if waiting == network:
                del self._waiting[place]
                return origin, expected
        return self._visits.origin or ("even", None), None

    def _was_picked(self, move: Picked) -> None:
        number = self._numbers[move.best]
        merits = dict(zip(move.networks, move.merits, strict=True))
        others = {network: merit for network, merit in merits.items() if network != move.best}
        second = max(others, key=others.__getitem__) if others else None
        place = self.scored[number].place if self.recombinations else None
        whole = self._whole.get(-1 if place is None else place)
        if whole is None and self._of_offers:
            place, whole = list(self._of_offers.items())[-1]
        rows = None if whole is None else Rows(whole)
        self.pick = Pick(
            architecture=move.best,
            evaluation=number,
            by="expected score" if move.expected else "score",
            merit=merits[move.best],
            among=len(merits),
            second=second,
            second_merit=None if second is None else others[second],
            recombination=place,
            path=() if rows is None else rows.path(move.best),
            rows=() if rows is None else tuple(map(rows.buckets, range(len(move.best)))),
        )
