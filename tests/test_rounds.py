"""Rounds: the same scores whoever makes them, in whatever order, interrupted or not."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
from torch import Tensor, nn

from compressor.errors import SearchError
from compressor.score.judge import Judge, make_judge
from compressor.score.rounds import Alone, Answer, Rounds, answer
from compressor.score.scorer import Recipes, Scorer
from compressor.score.trials import Standard
from compressor.search.outcome import Outcome
from compressor.space import Architecture
from tests.test_assembly import drawn
from tests.test_library import EXAMPLE, images
from tests.test_trials import library

ROUNDS = (1, 3, 2, 2)  # networks asked for at once


@cache
def judging() -> Judge:
    return make_judge("agreement", images(12), library().model)  # 192 images


def scorer(score: Any = None) -> Scorer:
    return Scorer(library(), EXAMPLE, images(2), score or judging(), Recipes())


def networks() -> list[list[Architecture]]:
    found = iter(dict.fromkeys(drawn(library().space.sizes, 60)))
    return [[next(found) for _ in range(count)] for count in ROUNDS]


class Several:
    """Takes turns between scorers of their own, the last network first."""

    def __init__(self, count: int) -> None:
        # as it is sent to workers
        self.scorers: list[Scorer] = [pickle.loads(pickle.dumps(scorer())) for _ in range(count)]  # noqa: S301

    def probe(self, base: Architecture, /) -> Any:
        raise NotImplementedError

    def answers(
        self, networks: Sequence[Architecture], standard: Standard | None
    ) -> Iterator[Answer]:
        found = {
            place: answer(self.scorers[place % len(self.scorers)], networks[place], standard)
            for place in reversed(range(len(networks)))
        }
        return (found[place] for place in range(len(networks)))


def rounds(crew: Any, own: Scorer, known: Any = (), eligible: Any = lambda _: True) -> Rounds:
    return Rounds(crew, own, eligible, lambda _: None, dict(known))


def unused(_: Architecture) -> Outcome:
    raise AssertionError


def asked(found: Rounds, batch: Sequence[Architecture], missing: int) -> list[float | None]:
    """Scores of the last networks of a round, as a ledger asks for them."""
    found.ask(batch)
    return [o.score for o in found(unused, batch[len(batch) - missing :])]


@cache
def alone() -> tuple[list[list[float | None]], dict[Architecture, int | None]]:
    own = scorer()
    made = rounds(Alone(own, None), own)
    scores = [asked(made, batch, len(batch)) for batch in networks()]
    return scores, {a: own.given_up(a) for batch in networks() for a in batch}


def test_some_are_given_up_and_some_are_not() -> None:
    _, given_up = alone()
    assert len(set(map(bool, given_up.values()))) == 2


@pytest.mark.parametrize("count", [2, 3])
def test_the_number_of_scorers_and_their_order_do_not_matter(count: int) -> None:
    own = scorer()
    made = rounds(Several(count), own)
    scores, given_up = alone()
    assert [asked(made, batch, len(batch)) for batch in networks()] == scores
    assert {a: own.given_up(a) for a in given_up} == given_up
    assert own.images > 0


@pytest.mark.parametrize(("done", "more"), [(1, 2), (2, 0)])
def test_a_round_that_was_interrupted_is_compared_as_before(done: int, more: int) -> None:
    scores, _ = alone()
    flat = [
        (a, (Outcome(score, "", 1.0),))
        for batch, made in zip(networks(), scores, strict=True)
        for a, score in zip(batch, made, strict=True)
    ]
    own = scorer()
    made = rounds(Alone(own, None), own, flat[: sum(ROUNDS[:done]) + more])
    left = networks()[done:]
    first = asked(made, left[0], len(left[0]) - more)
    assert first == scores[done][more:]
    assert [asked(made, batch, len(batch)) for batch in left[1:]] == scores[done + 1 :]


def test_networks_of_a_round_are_not_compared_with_each_other() -> None:
    own = scorer()
    made = rounds(Alone(own, None), own)
    batch = [a for batch in networks() for a in batch]
    asked(made, batch, len(batch))
    assert not any(own.given_up(a) for a in batch)


def test_what_is_not_eligible_is_never_compared_with() -> None:
    own = scorer()
    made = rounds(Alone(own, None), own, eligible=lambda _: False)
    for batch in networks():
        asked(made, batch, len(batch))
    assert not any(own.given_up(a) for batch in networks() for a in batch)


def test_costs_are_there_before_anything_is_scored() -> None:
    told: list[Any] = []

    def score(_: nn.Module) -> float:
        told.append("scored")
        return 0.0

    own = scorer(score)
    made = Rounds(Alone(own, None), own, lambda _: True, told.append, {})
    batch = networks()[1]
    assert asked(made, batch, len(batch)) == [0.0] * 3
    assert told == [batch, *["scored"] * 3]


def test_a_failed_network_is_an_outcome() -> None:
    def score(_: nn.Module) -> float:
        return math.nan

    own = scorer(score)
    made = rounds(Alone(own, None), own)
    made.ask(networks()[2])
    assert [o.reason[:10] for o in made(unused, networks()[2])] == ["ValueError"] * 2


class Fails(Several):
    def answers(self, networks: Any, standard: Any) -> Iterator[Answer]:
        return (Answer(Outcome(None, "out of luck", 1.0)) for _ in networks)


def test_a_best_network_that_cannot_be_scored_again_is_told() -> None:
    known = [(networks()[0][0], (Outcome(0.5, "", 1.0),))]
    made = rounds(Fails(1), scorer(), known)
    with pytest.raises(SearchError, match="could not be scored again: out of luck"):
        asked(made, networks()[2], 2)


def test_a_copy_that_is_sent_has_not_learned_anything() -> None:
    own = scorer()
    batch = networks()[1]
    before = [own(a) for a in batch]
    other = pickle.loads(pickle.dumps(own))  # noqa: S301
    assert (other.images, own.images > 0) == (0, True)
    assert [other(a) for a in batch] == before
    assert isinstance(other.seen, Tensor | None)
