"""Makes a trace of what a search tells. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compressor.cost import Limit
from compressor.search.moves import (
    Asked,
    Checked,
    Drawn,
    Move,
    Picked,
    Probed,
    Recombined,
    Scored,
    Turned,
)
from compressor.space import Architecture
from compressor.trace.rows import Rows, count
from compressor.trace.trace import Evaluation, Pick, Recombination, Source, Visit
from compressor.trace.visits import Visits

_Origin = tuple[Source, int | None]


class Recorder:
    """Watches one search; afterwards it holds what a trace is made of."""

    def __init__(
        self, budgets: Sequence[Sequence[Limit]], images: Mapping[Architecture, int]
    ) -> None:
        """Has seen nothing yet.

        Args:
            budgets: limits that hold together, for each network that is asked for.
            images: candidates that were given up, and after how many images.
        """
        self.scored: list[Evaluation] = []
        self.recombinations: list[Recombination] = []
        self.picks: list[Pick] = []
        self._budgets, self._images = budgets, images
        self._budget = 0  # whose turn it is
        self._visits = Visits()
        self._numbers: dict[Architecture, int] = {}  # of the first evaluation of each network
        self._started = set[int]()  # budgets for which networks were asked for
        self._probed = False  # whether a probe's gains are being recombined
        self._latest: Recombined | None = None
        self._offers: dict[Architecture, _Origin] = {}
        self._waiting: list[tuple[Architecture, _Origin, tuple[float, float] | None]] = []
        # only recombinations that somebody may want to see in full are kept whole
        self._whole: dict[int, Recombined] = {}
        self._of_offers: dict[int, Recombined] = {}  # since networks were asked for
        self._last: dict[int, tuple[int, Recombined]] = {}  # of each budget, with its place
        self._actions: dict[type, Callable[[Any], None]] = {
            Turned: self._turned,
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

    def _turned(self, move: Turned) -> None:
        self._budget = move.budget
        # what another budget scored before is not scored again, though it was asked for
        self._waiting.clear()
        self._offers.clear()

    def _recombined(self, move: Recombined) -> None:
        self._latest = move

    def _checked(self, move: Checked) -> None:
        if self._latest is None:  # not even the cheapest network is near the limits
            return
        place, source = len(self.recombinations), self._source(move.place)
        numbers = len(self._latest.networks), len(move.inside), len(move.new)
        layers = count(self._latest)
        self.recombinations.append(
            Recombination(len(self.scored), self._budget, source, layers, *numbers)
        )
        self._of_offers[place] = self._latest
        self._last[self._budget] = place, self._latest
        for network in move.new:
            self._offers.setdefault(network, (source, place))
        self._latest = None

    def _source(self, place: int) -> Source:
        if self._probed:
            return "gains of neighbours"
        if self._budget not in self._started:
            return "hints"
        return "drawn effects" if place else "expected effects"

    def _was_probed(self, move: Probed) -> None:
        del move
        self._probed = True

    def _drawn(self, move: Drawn) -> None:
        self._offers.setdefault(move.architecture, ("random", None))

    def _asked(self, move: Asked) -> None:
        self._started.add(self._budget)
        self._probed = False
        expected = move.expected or (None,) * len(move.networks)
        for network, numbers in zip(move.networks, expected, strict=True):
            known = network in self._numbers
            otherwise: _Origin = ("repeat" if known else "even", None)
            origin = otherwise if known else self._offers.get(network, otherwise)
            self._waiting.append((network, origin, numbers))
            if origin[1] is not None:
                self._whole[origin[1]] = self._of_offers[origin[1]]
        self._offers.clear()
        self._of_offers.clear()

    def _was_scored(self, move: Scored) -> None:
        origin, expected = self._origin(move.architecture)
        mean, deviation = expected or (None, None)
        self._numbers.setdefault(move.architecture, len(self.scored))
        outcome, network = move.outcome, move.architecture
        self.scored.append(
            Evaluation(
                number=len(self.scored),
                architecture=network,
                budget=self._budget,
                source=origin[0],
                place=origin[1],
                expected=mean,
                deviation=deviation,
                score=outcome.score,
                reason=outcome.reason,
                repeat=outcome.repeat,
                images=self._images.get(network),
                costs={t.cost.unit: float(t.cost(network)) for t in self._budgets[0]},
                keeps=tuple(
                    place
                    for place, limits in enumerate(self._budgets)
                    if all(limit.holds(limit.cost(network)) for limit in limits)
                ),
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
        place, whole = self._told(number)
        rows = None if whole is None else Rows(whole)
        self.picks.append(
            Pick(
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
        )

    def _told(self, number: int) -> tuple[int | None, Recombined | None]:
        """The recombination that brought an evaluation, else the last one of this budget."""
        place = self.scored[number].place
        if place is not None and place in self._whole:
            return place, self._whole[place]
        return self._last.get(self._budget, (None, None))
