"""The bookkeeping that every search strategy shares: who was scored, and who won.

Knows no torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Real

from compressor.errors import SearchError
from compressor.outcome import Candidate, Executor, Outcome, SearchResult
from compressor.reach import Reach
from compressor.space import Architecture

Score = Callable[[Architecture], float]
OnOutcome = Callable[[Architecture, Outcome], None]
_REASON = 500  # characters of an error message that are kept


class Ledger:
    """Scores networks, each once, within a number of evaluations.

    Networks known beforehand count like the others but are not scored again, so that a resumed
    search passes through the same states as the one that was interrupted.
    """

    def __init__(
        self,
        *,
        reach: Reach,
        score: Score,
        evaluations: int,
        executor: Executor = map,
        known: Mapping[Architecture, Outcome] | None = None,
        on_outcome: OnOutcome | None = None,
    ) -> None:
        if evaluations < 1:
            raise SearchError(f"a search needs at least one evaluation, but got {evaluations}")
        self._reach = reach
        self._judge = partial(judge, score)
        self._evaluations = evaluations
        self._executor = executor
        self._known = {} if known is None else known
        self._on_outcome = on_outcome
        self._outcomes: dict[Architecture, Outcome] = {}

    @property
    def left(self) -> int:
        """Evaluations that may still be made."""
        return self._evaluations - len(self._outcomes)

    def score(self, architecture: Architecture) -> float | None:
        """The score of a network, None where it failed or was not asked for."""
        outcome = self._outcomes.get(architecture)
        return outcome.score if outcome else None

    def answered(self) -> bool:
        """Whether a network was scored that nothing in reach is preferred to for its cost."""
        wanted = self._reach.in_band if self._reach.banded else self._reach.inside
        return any(o.score is not None and wanted(a) for a, o in self._outcomes.items())

    def ask(self, batch: Sequence[Architecture], spare: int = 0) -> None:
        """Scores the networks that are new, in order, until `spare` evaluations are left.

        The executor gets one batch and is consumed lazily: each outcome is reported when it
        is there.
        """
        fresh = [a for a in dict.fromkeys(batch) if a not in self._outcomes]
        fresh = fresh[: max(0, self.left - spare)]
        missing = [a for a in fresh if a not in self._known]
        made: Iterator[Outcome] = (
            iter(self._executor(self._judge, missing)) if missing else iter(())
        )
        for architecture in fresh:
            if architecture in self._known:
                self._outcomes[architecture] = self._known[architecture]
                continue
            outcome = next(made)
            self._outcomes[architecture] = outcome
            if self._on_outcome is not None:
                self._on_outcome(architecture, outcome)

    def result(self) -> SearchResult:
        """The best network inside the limits, in the band where one was scored there.

        Raises:
            SearchError: no network inside the limits has a score.
        """
        scored = [
            Candidate(a, self._reach.costs(a), o.score)
            for a, o in self._outcomes.items()
            if o.score is not None
        ]
        failed = tuple((a, o.reason) for a, o in self._outcomes.items() if o.score is None)
        inside = [c for c in scored if self._reach.inside(c.architecture)]
        band = [c for c in inside if self._reach.in_band(c.architecture)]
        if not inside:
            raise self._nothing(failed)
        unit = self._reach.limits[0].cost.unit
        return SearchResult(
            best=max(band or inside, key=lambda c: (c.score, -c.costs[unit])),
            frontier=pareto(scored, unit),
            evaluations=len(self._outcomes),
            failed=failed,
            scored=tuple(scored),
        )

    def _nothing(self, failed: Sequence[tuple[Architecture, str]]) -> SearchError:
        first = f"; the first, {failed[0][0]}, failed with: {failed[0][1]}" if failed else ""
        return SearchError(
            "a search must score at least one network within the limits, but of "
            f"{len(self._outcomes)} networks {len(failed)} could not be scored{first}; "
            "correct the score function"
        )


def judge(score: Score, architecture: Architecture) -> Outcome:
    """Scores one network; whatever goes wrong becomes the reason, so that the search goes on."""
    start = time.perf_counter()
    value: float | None = None
    reason = ""
    try:
        value = _finite(score(architecture))
    except Exception as error:  # noqa: BLE001 - the score is someone else's code
        reason = f"{type(error).__name__}: {error}"[:_REASON]
    return Outcome(value, reason, time.perf_counter() - start)


def pareto(candidates: Sequence[Candidate], unit: str) -> tuple[Candidate, ...]:
    """Candidates that no other beats in score and cost of the unit, by rising cost."""
    frontier: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.costs[unit], -c.score, c.architecture)):
        if not frontier or candidate.score > frontier[-1].score:
            frontier.append(candidate)
    return tuple(frontier)


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"a score must be a finite number, but got {value!r:.80}")
    return float(value)
