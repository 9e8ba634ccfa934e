"""Candidates scored in batches, to the same scores whoever makes them and in whatever order.

What a search asks for at once is a round. Its candidates are compared with the best network of
all rounds before, never with each other, so none depends on how far the others are or on where it
is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from compressor.errors import SearchError
from compressor.score.scorer import Scorer
from compressor.score.trials import Standard
from compressor.search.ledger import Known, judge
from compressor.search.outcome import Judge, Outcome
from compressor.search.trend import Hints
from compressor.space import Architecture


@dataclass(frozen=True)
class Answer:
    """What an evaluation came to.

    Attributes:
        outcome: of the candidate.
        values: of all images, `[N]`; None where it was given up, failed, or is not compared.
        images: that it was shown.
        given_up: after how many images it was given up, or None.
        most: images that were shown at once at most because memory ran out, or None.
    """

    outcome: Outcome
    values: Tensor | None = None
    images: int = 0
    given_up: int | None = None
    most: int | None = None


class Crew(Protocol):
    """Those who score candidates."""

    def probe(self, base: Architecture, /) -> Hints:
        """Measures the neighbours of a network as `compressor.score.probe.Probe` does."""

    def answers(
        self, networks: Sequence[Architecture], standard: Standard | None
    ) -> Iterator[Answer]:
        """Scores the networks, each compared with the standard; in their order."""


def answer(scorer: Scorer, architecture: Architecture, standard: Standard | None) -> Answer:
    """Scores one network here."""
    before = scorer.images
    scorer.compare_with(standard)
    outcome = judge(scorer, architecture)
    values = scorer.seen if outcome.score is not None else None
    shown, given_up = scorer.images - before, scorer.given_up(architecture)
    return Answer(outcome, values, shown, given_up, scorer.most)


class Alone:
    """A crew of one, in this process."""

    def __init__(self, scorer: Scorer, probe: Callable[[Architecture], Hints] | None) -> None:
        """Starts nothing.

        Args:
            scorer: scores.
            probe: measures neighbours, where they are measured at all.
        """
        self._scorer, self._probe = scorer, probe

    def probe(self, base: Architecture, /) -> Hints:
        """What the neighbours of a network cost."""
        assert self._probe is not None  # noqa: S101  (asked for only where there is one)
        return self._probe(base)

    def answers(
        self, networks: Sequence[Architecture], standard: Standard | None
    ) -> Iterator[Answer]:
        """Scores the networks one after the other."""
        for network in networks:
            yield answer(self._scorer, network, standard)


class Rounds:
    """An executor for searches (`compressor.search.outcome.Executor`) that scores round by round.

    What a round is compared with follows from what the journal holds of other rounds, so that a
    resumed search compares as if it had not been interrupted.
    """

    def __init__(
        self,
        crew: Crew,
        scorer: Scorer,
        eligible: Callable[[Architecture], bool],
        prepare: Callable[[Sequence[Architecture]], None],
        known: Known,
    ) -> None:
        """Scores nothing yet.

        Args:
            crew: scores.
            scorer: is told what candidates came to that others scored.
            eligible: whether an architecture may be what others are compared with.
            prepare: called with the networks of a round before any of them is scored.
            known: outcomes of all rounds so far, in order.
        """
        self._crew, self._scorer, self._eligible, self._prepare = crew, scorer, eligible, prepare
        first = ((a, outcomes[0].score) for a, outcomes in known.items() if outcomes)
        self._scores = {a: score for a, score in first if score is not None}
        self._values: dict[Architecture, Tensor] = {}
        self._round: frozenset[Architecture] = frozenset()
        self._standard: tuple[Architecture, Standard] | None = None

    def ask(self, batch: Sequence[Architecture]) -> None:
        """A round begins: what is asked for at once, known networks among it."""
        self._round = frozenset(batch)

    def __call__(self, _: Judge, networks: Iterable[Architecture]) -> Iterator[Outcome]:
        """The outcomes of the networks, in their order; the crew judges them."""
        asked = list(networks)
        self._prepare(asked)
        standard = self._best_before() if self._scorer.compares else None
        for network, found in zip(asked, self._crew.answers(asked, standard), strict=True):
            self._note(network, found)
            yield found.outcome

    def _note(self, network: Architecture, found: Answer) -> None:
        if not isinstance(self._crew, Alone):
            self._scorer.heard(network, found.images, found.given_up, found.most)
        if network in self._scores or found.outcome.score is None:
            return
        self._scores[network] = found.outcome.score
        if found.values is not None:
            self._values[network] = found.values

    def _best_before(self) -> Standard | None:
        """The best network outside of the round; among equals the earliest."""
        others = [(score, a) for a, score in self._scores.items() if a not in self._round]
        others.sort(key=lambda pair: -pair[0])
        found = next((pair for pair in others if self._eligible(pair[1])), None)
        if found is None:
            return None
        score, best = found
        if self._standard is None or self._standard[0] != best:
            values = self._values.get(best)
            self._standard = best, Standard(score, self._again(best) if values is None else values)
        self._values = {a: v for a, v in self._values.items() if a in self._round}
        return self._standard[1]

    def _again(self, network: Architecture) -> Tensor:
        """The values of a network that an interrupted run has scored."""
        (found,) = self._crew.answers([network], None)
        if found.values is None:
            raise SearchError(
                "a resumed search compares with the best network so far, image by image, but "
                f"{network} could not be scored again: {found.outcome.reason}; start again in "
                "another run directory"
            )
        return found.values
