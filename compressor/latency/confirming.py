"""The promise of a latency budget: predictions guide the search, measurements decide.

Before the search a few networks near the budget are measured, and the predictions corrected by
them. A budget of latency is kept by the upper end of the 95 % interval of what the network was
measured to take. Where the best networks of a search miss it, or leave much of it unused, the
predictions are corrected by what was measured, and the search goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from compressor.budget import format_cost
from compressor.cost import CostModel
from compressor.deploy.slicing import Graph
from compressor.device.measure import Settings
from compressor.device.timing import Latency, Schedule, pooled
from compressor.errors import ExportError, InfeasibleError, MeasureError, RunError
from compressor.latency.cache import this_machine
from compressor.latency.cost import LatencyCost
from compressor.latency.fused import fuse
from compressor.latency.parts import Clockwork
from compressor.latency.predicted import PredictedLatency
from compressor.latency.table import LatencyTable, TableData, build_table
from compressor.limits import ResolvedBudget
from compressor.plain import decode, encode
from compressor.progress import Event, Progress
from compressor.search.journal import Journal
from compressor.search.outcome import Candidate, SearchResult
from compressor.space import Architecture, SearchSpace

_CONFIRM = Schedule(rounds=20, seconds=4.0)
_WINDOWS = 4  # times that a candidate is measured before it is taken
_CONFIRMED = 8  # best candidates that are measured after a search
_SEARCHES = 4  # searches, each with a tighter limit than the one before
_SPARE = 0.95  # share of the budget below which an upper end leaves much of it unused
_TRIED = 8  # networks near the budgets that are measured before the search
_TIGHTER = 0.98  # share of its last value that a limit has at most in the next search
_ROUNDING = 1 + 1e-9
_NOTE = "latency table"

Goal: TypeAlias = tuple[ResolvedBudget, ...]
SearchAgain: TypeAlias = Callable[[Goal], SearchResult]
SearchAll: TypeAlias = Callable[[Sequence[Goal]], tuple[SearchResult, ...]]


def predicted_latency(
    graph: Graph,
    space: SearchSpace,
    whole: LatencyCost,
    settings: Settings,
    journal: Journal,
    progress: Progress,
    folder: Path | None = None,
) -> CostModel:
    """The predicted latency; where the network cannot be split, `whole`, and that is told.

    Parts that the folder holds times of are not measured again; what is new is added to it.

    A table that the run's journal holds is taken from there, so that a resumed run predicts the
    same.

    Raises:
        RunError: the journal holds a table that is none.
    """
    noted = journal.get(_NOTE)
    if noted == {}:  # could not be split before
        return whole
    if noted is not None:
        try:
            table = LatencyTable.of(decode(TableData, noted))
        except ValueError as error:
            raise RunError(
                f"the journal notes a latency table that cannot be one: {error}; it is broken or "
                "foreign, choose another run directory"
            ) from error
        return PredictedLatency(table, whole, whole(space.original))
    clockwork = Clockwork(whole.measurer, settings, this_machine(settings), folder)
    try:
        table = build_table(
            graph, space, clockwork, partial(fuse, settings=settings), progress=progress
        )
    except (ExportError, MeasureError) as error:
        progress(Event(_NOTE, 1, 1, f"there is none, each candidate is measured: {error}"))
        journal.put(_NOTE, {})
        return whole
    journal.put(_NOTE, encode(table.data))
    note = f"off by {table.correction.error:.1%} on networks left out"
    progress(Event(_NOTE, 1, 1, note))
    return PredictedLatency(table, whole, whole(space.original))


def adjusted(goals: Sequence[Goal], progress: Progress) -> tuple[Goal, ...]:
    """The goals with predictions that are right today for networks near their latency budgets.

    A table may be of another day, and of a machine on which something else ran. What is measured
    here is remembered as the cost of those networks, so that a resumed run adjusts the same.

    Raises:
        MeasureError: ONNX Runtime cannot run one of the networks.
        DeviceError: the device fails.
    """
    budgets = [b for goal in goals for b in goal if isinstance(b.cost, PredictedLatency)]
    if not budgets:
        return tuple(tuple(goal) for goal in goals)
    cost = budgets[0].cost
    assert isinstance(cost, PredictedLatency)  # noqa: S101  (chosen by that above)
    aims = np.resize([b.limit().high for b in budgets], _TRIED) * np.linspace(0.95, 1.05, _TRIED)
    seen: dict[Architecture, float] = {}
    for network in cost.near(aims.tolist()):
        seen[network] = cost.whole(network)
        progress(Event(_NOTE, len(seen), _TRIED, "networks near the budget timed"))
    learnt = cost.learnt(seen) if seen else cost
    return tuple(
        tuple(replace(b, cost=learnt) if b.cost is cost else b for b in goal) for goal in goals
    )


@dataclass(frozen=True)
class Confirmed:
    """The network that was taken, and the last search, which knows what those before it scored."""

    search: SearchResult
    candidate: Candidate


def searched(
    goals: Sequence[Goal], settings: Settings, search: SearchAll
) -> tuple[tuple[SearchResult, ...], Sequence[Goal]]:
    """What a search finds, and the goals that it was given.

    Predictions and the margin may say that nothing keeps a budget of latency. Then the network that
    is predicted to be the fastest is measured; if it keeps the budget after all, the search is made
    with that prediction as its limit.

    Raises:
        InfeasibleError: nothing keeps the goals; of latency the message names the fastest network.
    """
    try:
        return search(goals), goals
    except InfeasibleError as error:
        goal = goals[-1]
        latency = next((b for b in goal if b.budget.unit == "latency"), None)
        if latency is None or not isinstance(latency.cost, PredictedLatency):
            raise
        fastest = latency.cost.fastest()
        if latency.cost(fastest) <= latency.limit().high:
            raise  # it is another limit that nothing keeps
        longer = replace(settings, schedule=_CONFIRM)
        found = latency.cost.measured(fastest, longer)
        if len(goals) > 1 or not _keeps(latency, found, latency.high):
            raise _infeasible(latency, {fastest: found}, longer) from error
        wider = latency.high * latency.cost(fastest) / latency.limit().high * _ROUNDING
        wide = [tuple(replace(b, high=wider) if b is latency else b for b in goal)]
        return search(wide), wide


def confirmed(
    result: SearchResult,
    goal: Goal,
    settings: Settings,
    search: SearchAgain,
    within: Goal | None = None,
) -> Confirmed:
    """The best candidate; under a latency budget, the best that a longer measurement confirms.

    Args:
        result: of the search.
        goal: what was promised.
        settings: how this run measures; the schedule is our own.
        search: searches once more, within other budgets.
        within: what the search was given, where that was not the goal itself.

    Raises:
        InfeasibleError: none was confirmed; the message names the fastest network and its time.
    """
    latency = next((b for b in goal if b.budget.unit == "latency"), None)
    if latency is None or not isinstance(latency.cost, (LatencyCost, PredictedLatency)):
        return Confirmed(result, result.best)
    longer = replace(settings, schedule=_CONFIRM)
    measured: dict[Architecture, Latency] = {}
    results, limits = [result], within or goal
    kept: Confirmed | None = None
    while True:
        ranked = _ranked(results, limits, measured)
        found = _first_kept(latency, _better(ranked, kept)[:_CONFIRMED], longer, measured)
        once_more = found is not None and kept is None and _wastes(latency, measured, found)
        if found is not None:
            kept = Confirmed(results[-1], found)
        if kept is not None and not once_more:
            return replace(kept, search=results[-1])
        reason: InfeasibleError | None = None
        if isinstance(latency.cost, PredictedLatency) and len(results) < _SEARCHES:
            limits = _corrected(limits, latency, measured, tighter=kept is None)
            try:
                results.append(search(limits))
                continue
            except InfeasibleError as error:
                reason = error
        kept = kept or _just_kept(latency, results, measured)
        if kept is None:
            raise _infeasible(latency, measured, longer) from reason
        return replace(kept, search=results[-1])


def _just_kept(
    latency: ResolvedBudget,
    results: Sequence[SearchResult],
    measured: Mapping[Architecture, Latency],
) -> Confirmed | None:
    """The best that keeps the budget today, where none keeps it by what days may differ."""
    every = [Confirmed(result, c) for result in results for c in result.scored]
    keeping = {a for a, found in measured.items() if _keeps(latency, found, latency.high)}
    just = [found for found in every if found.candidate.architecture in keeping]
    return max(just, key=lambda found: found.candidate.score, default=None)


def _first_kept(
    latency: ResolvedBudget,
    candidates: Sequence[Candidate],
    settings: Settings,
    measured: dict[Architecture, Latency],
) -> Candidate | None:
    """The first that keeps the budget; what is measured until then is noted in `measured`."""
    for candidate in candidates:
        found = _in_windows(latency, candidate.architecture, settings)
        measured[candidate.architecture] = found
        if _keeps(latency, found, latency.guarded):
            return candidate
    return None


def _in_windows(latency: ResolvedBudget, architecture: Architecture, settings: Settings) -> Latency:
    """A network's latency; of one that keeps the budget, over several windows of time.

    What else a machine does changes the ratio of two networks by some per cent for many seconds,
    which no interval of one window knows.
    """
    cost = latency.cost
    assert isinstance(cost, LatencyCost | PredictedLatency)  # noqa: S101  (`confirmed` looked)
    windows = [cost.measured(architecture, settings)]
    while len(windows) < _WINDOWS and windows[-1].high_ms <= latency.guarded:
        windows.append(cost.measured(architecture, settings))
    return pooled(windows)


def _better(candidates: Sequence[Candidate], kept: Confirmed | None) -> list[Candidate]:
    return [c for c in candidates if kept is None or c.score > kept.candidate.score]


def _wastes(
    latency: ResolvedBudget, measured: Mapping[Architecture, Latency], found: Candidate
) -> bool:
    """Whether predictions that are corrected could find a network that uses more of the budget."""
    predicted = isinstance(latency.cost, PredictedLatency) and latency.low is None
    return predicted and measured[found.architecture].high_ms < _SPARE * latency.high


def _ranked(
    results: Sequence[SearchResult], goal: Goal, measured: dict[Architecture, Latency]
) -> list[Candidate]:
    """Candidates within the goal that were not measured yet, the best first, each once."""
    every = [c for result in results for c in result.scored]
    ranked = [results[-1].best, *sorted(every, key=lambda c: -c.score)]
    first = {c.architecture: c for c in reversed(ranked)}
    return [
        first[a] for a in dict.fromkeys(c.architecture for c in ranked)
        if a not in measured and all(b.limit().holds(b.cost(a)) for b in goal)
    ]  # fmt: skip


def _keeps(latency: ResolvedBudget, found: Latency, high: float) -> bool:
    """Whether what was measured keeps the budget, the upper end of the interval included."""
    return found.high_ms <= high and latency.holds(found.median_ms)


def _corrected(
    goal: Goal,
    latency: ResolvedBudget,
    measured: dict[Architecture, Latency],
    *,
    tighter: bool,
) -> tuple[ResolvedBudget, ...]:
    """The goal with predictions that know what was measured.

    With less latency allowed where that missed the budget: the limit then shrinks by what the
    corrected predictions still miss the upper ends by.
    """
    cost = latency.cost
    assert isinstance(cost, PredictedLatency)  # noqa: S101  (others are not searched again)
    learnt = cost.learnt({a: found.median_ms for a, found in measured.items()})
    high = latency.high
    if tighter:
        misses = sorted(found.high_ms / learnt(a) for a, found in measured.items())
        before = next(b for b in goal if b.budget.unit == "latency").high
        high = min(_TIGHTER * before, high / misses[len(misses) // 2])
    return tuple(
        replace(b, cost=learnt, high=high, low=min(b.low, high) if b.low is not None else None)
        if b.budget.unit == "latency"
        else b
        for b in goal
    )


def _infeasible(
    latency: ResolvedBudget, measured: dict[Architecture, Latency], settings: Settings
) -> InfeasibleError:
    """Names the fastest network: of all that can be reached, where latency is predicted."""
    cost = latency.cost
    if isinstance(cost, PredictedLatency) and cost.fastest() not in measured:
        measured = measured | {cost.fastest(): cost.measured(cost.fastest(), settings)}
    fastest, best = min(measured.items(), key=lambda found: found[1].median_ms)
    return InfeasibleError(
        f"the budget {latency.budget} allows {format_cost('latency', latency.high)} with the "
        f"upper end of the 95 % interval, but of the {len(measured)} networks measured the "
        f"fastest, with the options {', '.join(map(str, fastest))}, takes "
        f"{format_cost('latency', best.median_ms)} (95 % interval {best.low_ms:.3g} to "
        f"{best.high_ms:.3g} ms); allow that much, let more layers shrink, or, if the machine was "
        "busy, run the same command again"
    )
