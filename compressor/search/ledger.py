"""The bookkeeping that every search strategy shares: who was scored, and who won.

Knows no torch.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import TypeAlias

from compressor.cost import Limit
from compressor.errors import BudgetError, SearchError
from compressor.search.moves import Picked, Scored, Watch
from compressor.search.outcome import Candidate, Executor, Outcome, SearchResult
from compressor.search.reach import Costs, HiddenBy, Reach
from compressor.search.settings import SearchSettings
from compressor.space import Architecture

Score = Callable[[Architecture], float]
OnOutcome = Callable[[Architecture, Outcome], None]
OnAsk = Callable[[Sequence[Architecture]], None]
Expected: TypeAlias = Callable[[Sequence[Architecture]], Sequence[float]]
Known: TypeAlias = Mapping[Architecture, Sequence[Outcome]]
"""Outcomes of each network in the order of their making; more than one where it was repeated."""
_REASON = 500  # characters of an error message that are kept


class Ledger:
    """Scores networks within a number of evaluations.

    Outcomes known beforehand count like the others but are not scored again, so that a resumed
    search passes through the same states as the one that was interrupted. Of all choices that stand
    for one network only the canonical ones are scored and known (`Reach.canonical`).

    Attributes:
        reach: what the limits leave to choose from.
        banded: whether networks in the band are preferred to cheaper ones, whatever their score.
    """

    def __init__(
        self,
        *,
        reach: Reach,
        score: Score,
        evaluations: int,
        executor: Executor = map,
        known: Known | None = None,
        on_outcome: OnOutcome | None = None,
        on_ask: OnAsk | None = None,
        watch: Watch | None = None,
    ) -> None:
        if evaluations < 1:
            raise SearchError(f"a search needs at least one evaluation, but got {evaluations}")
        self.reach = reach
        self.watch = watch
        self.banded = True
        self._judge = partial(judge, score)
        self._evaluations = evaluations
        self._executor = executor
        self._known = {} if known is None else known
        self._on_outcome = on_outcome
        self._on_ask = on_ask
        self._outcomes: dict[Architecture, list[Outcome]] = {}
        self._fits: dict[Architecture, tuple[bool, bool]] = {}
        self._history: list[tuple[Architecture, float | None]] = []

    @property
    def left(self) -> int:
        """Evaluations that may still be made."""
        return self._evaluations - len(self._history)

    @property
    def history(self) -> Sequence[tuple[Architecture, float | None]]:
        """Every evaluation in order, with its score; None where it failed."""
        return self._history

    def asked(self, architecture: Architecture) -> bool:
        """Whether a network was scored, or failed."""
        return self.reach.canonical(architecture) in self._outcomes

    def score(self, architecture: Architecture) -> float | None:
        """The mean score of a network, None where it failed or was not asked for."""
        made = self._outcomes.get(self.reach.canonical(architecture), ())
        scores = [o.score for o in made if o.score is not None]
        return math.fsum(scores) / len(scores) if scores else None

    def scores(self) -> dict[Architecture, float]:
        """The mean score of every network that has one."""
        scores = {a: self.score(a) for a in self._outcomes}
        return {a: score for a, score in scores.items() if score is not None}

    def answered(self) -> bool:
        """Whether a network was scored that nothing in reach is preferred to for its cost."""
        wanted = self.reach.in_band if self.reach.holds_band else self.reach.inside
        return any(wanted(a) for a in self.scores())

    def within(self, reach: Reach) -> Ledger:
        """The same evaluations, also those still to come, looked at from other limits.

        Networks in the band are not preferred: what keeps these limits may have been looked for
        under tighter ones.
        """
        view = copy.copy(self)
        view.reach, view.banded, view._fits = reach, False, {}
        return view

    def eligible(self, networks: Iterable[Architecture]) -> list[Architecture]:
        """Those of the networks that can be the answer."""
        inside = [a for a in networks if self._fit(a)[0]]
        return (self.banded and [a for a in inside if self._fit(a)[1]]) or inside

    def _fit(self, architecture: Architecture) -> tuple[bool, bool]:
        """Whether a network is inside, and in the band; looked up once, as it is asked often."""
        if architecture not in self._fits:
            inside = self.reach.inside(architecture)
            self._fits[architecture] = inside, inside and self.reach.in_band(architecture)
        return self._fits[architecture]

    def ask(self, batch: Sequence[Architecture], spare: int = 0) -> None:
        """Scores the networks that are new, in order, until `spare` evaluations are left."""
        networks = dict.fromkeys(map(self.reach.canonical, batch))
        self._run([a for a in networks if a not in self._outcomes], spare)

    def ask_again(self, batch: Sequence[Architecture]) -> None:
        """Scores networks whether or not they are new, while evaluations are left."""
        self._run([self.reach.canonical(a) for a in batch], 0)

    def result(self, expected: Expected | None = None) -> SearchResult:
        """The best network inside the limits, in the band where one was scored there.

        Args:
            expected: what is expected of scored networks, where that is a better guide than
                their scores; decides which is the best.

        Raises:
            SearchError: no network inside the limits has a score.
        """
        scored = [Candidate(a, self.reach.costs(a), score) for a, score in self.scores().items()]
        failed = tuple(
            (a, made[0].reason) for a, made in self._outcomes.items() if self.score(a) is None
        )
        eligible = set(self.eligible(c.architecture for c in scored))
        inside = [c for c in scored if c.architecture in eligible]
        if not inside:
            raise self._nothing(failed)
        unit = self.reach.limits[0].cost.unit
        merits = [c.score for c in inside]
        if expected is not None:
            merits = list(expected([c.architecture for c in inside]))
        ranks = [(m, -c.costs[unit]) for m, c in zip(merits, inside, strict=True)]
        best = inside[ranks.index(max(ranks))]
        if self.watch is not None:
            networks = tuple(c.architecture for c in inside)
            self.watch(Picked(networks, tuple(merits), expected is not None, best.architecture))
        return SearchResult(
            best=best,
            frontier=pareto(scored, unit),
            evaluations=len(self._history),
            failed=failed,
            scored=tuple(scored),
        )

    def _run(self, batch: Sequence[Architecture], spare: int) -> None:
        """Makes evaluations; the executor gets those that are not known.

        It is consumed lazily: each outcome is reported when it is there.
        """
        batch = batch[: max(0, self.left - spare)]
        rounds = self._rounds(batch)
        known = [self._recall(a, n) for a, n in zip(batch, rounds, strict=True)]
        missing = [a for a, outcome in zip(batch, known, strict=True) if outcome is None]
        if missing and self._on_ask is not None:
            self._on_ask(batch)
        made = iter(self._executor(self._judge, missing)) if missing else iter(())
        for architecture, repeat, outcome in zip(batch, rounds, known, strict=True):
            if outcome is not None:
                self._enter(architecture, outcome)
                continue
            fresh = replace(next(made), repeat=repeat)
            self._enter(architecture, fresh)
            if self._on_outcome is not None:
                self._on_outcome(architecture, fresh)

    def _rounds(self, batch: Sequence[Architecture]) -> list[int]:
        """How often each network of the batch was asked for before."""
        counts = {a: len(self._outcomes.get(a, ())) for a in batch}
        rounds = []
        for architecture in batch:
            rounds.append(counts[architecture])
            counts[architecture] += 1
        return rounds

    def _recall(self, architecture: Architecture, repeat: int) -> Outcome | None:
        known = self._known.get(architecture, ())
        return known[repeat] if repeat < len(known) else None

    def _enter(self, architecture: Architecture, outcome: Outcome) -> None:
        self._outcomes.setdefault(architecture, []).append(outcome)
        self._history.append((architecture, outcome.score))
        if self.watch is not None:
            self.watch(Scored(architecture, outcome))

    def _nothing(self, failed: Sequence[tuple[Architecture, str]]) -> SearchError:
        first = f"; the first, {failed[0][0]}, failed with: {failed[0][1]}" if failed else ""
        return SearchError(
            "a search must score at least one network within the limits, but of "
            f"{len(self._outcomes)} networks {len(failed)} could not be scored{first}; "
            "correct the score function"
        )


def open_ledger(  # noqa: PLR0913 - what every search takes, but for its seed
    *,
    sizes: Sequence[int],
    limits: Sequence[Limit],
    settings: SearchSettings,
    names: Sequence[str] | None,
    score: Score,
    evaluations: int,
    executor: Executor,
    known: Known | None,
    on_outcome: OnOutcome | None,
    on_ask: OnAsk | None = None,
    watch: Watch | None = None,
    measured: Costs | None = None,
    hidden_by: HiddenBy = (),
) -> Ledger:
    """Checks the form of the problem, then what the limits allow, and opens an empty ledger.

    Args: those of `layer_nas`, and `measured`, which is where to keep measured costs.

    Raises:
        InfeasibleError: no network within the limits.
        SearchError: a layer without options, or no evaluations.
        BudgetError: no limit was given, or two of one unit.
    """
    if not limits:
        raise BudgetError("a search needs at least one limit, but got none; give a budget")
    units = [limit.cost.unit for limit in limits]
    if len(set(units)) < len(units):
        raise BudgetError(f"each unit takes one limit, but got {units}; give the smaller one alone")
    for place, size in enumerate(sizes):
        if size < 1:
            name = names[place] if names else place
            raise SearchError(
                f"a layer needs at least one option, but got {size} for layer {name!r}"
            )
    return Ledger(
        reach=Reach(sizes, limits, settings.tightness, names, measured, hidden_by),
        score=score,
        evaluations=evaluations,
        executor=executor,
        known=known,
        on_outcome=on_outcome,
        on_ask=on_ask,
        watch=watch,
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
