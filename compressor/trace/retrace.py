"""The trace of a run from its journal alone. Knows no torch.

The search is made again with the recorded evaluations and measured costs, and watched. What
cannot be reproduced is an error, never a trace of something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.cost import CostModel, Limit, SizeTable
from compressor.errors import BudgetError, CompressorError, RunError, SearchError
from compressor.files import JOURNAL
from compressor.search.frontier import layer_nas_frontier
from compressor.search.journal import Journal
from compressor.search.layer_nas import layer_nas
from compressor.search.notes import (
    Problem,
    Start,
    StoredLimit,
    read_given_up,
    read_starts,
    versions,
)
from compressor.search.outcome import Judge, Outcome, by_network
from compressor.search.recall import recalled
from compressor.search.steps import Probe
from compressor.search.trend import Hints
from compressor.space import Architecture
from compressor.sum_table import SumCost
from compressor.trace.recorder import Recorder
from compressor.trace.trace import Trace, TracedLimit

_Evaluations = Sequence[tuple[Architecture, Outcome]]


def read_trace(run: Path | str, search: int | None = None) -> Trace:
    """What a run's search did, move by move; also of a run that is not finished.

    Args:
        run: the run directory; only its journal is read, and nothing is written.
        search: which of the run's searches, from 1; the last one unless given.

    Raises:
        RunError: there is no such run or search, its journal is broken, foreign or of an earlier
            version, or the search takes another course here than it did.
    """
    with Journal.read(Path(run) / JOURNAL) as journal:
        starts = read_starts(journal)
        place = len(starts) if search is None else search
        if not 1 <= place <= len(starts):
            raise RunError(f"the searches of this run are 1 to {len(starts)}, but got {place}")
        start = starts[place - 1]
        recorded = journal.evaluations()
        end = starts[place].known if place < len(starts) else len(recorded)
        budgets = _budgets(start.problem, journal.cost)
        recorder = Recorder(budgets, read_given_up(journal))
        probe = recalled(_unknown_around, journal) if start.problem.probed else None
        _replay(start.problem, budgets, recorded[:end], probe, recorder)
    _compare(start, recorded[:end], recorder)
    problem = start.problem
    return Trace(
        layers=problem.layers,
        budgets=tuple(tuple(map(_traced, limits)) for limits in problem.budgets),
        settings=problem.settings,
        evaluations=problem.evaluations,
        seed=problem.seed,
        search=place,
        searches=len(starts),
        scored=tuple(recorder.scored),
        visits=recorder.visits,
        recombinations=tuple(recorder.recombinations),
        picks=tuple(recorder.picks),
    )


def _traced(limit: StoredLimit) -> TracedLimit:
    return TracedLimit(limit.unit, limit.high, limit.low, limit.table is None)


class _JournalEndError(Exception):
    """The search asks for what the journal does not know."""


Recall = Callable[[str, Architecture], "float | None"]


class _Recorded:
    """A measured cost, as it was measured."""

    monotone = False

    def __init__(self, unit: str, recall: Recall) -> None:
        self.unit = unit
        self._recall = recall

    def __call__(self, architecture: Architecture) -> float:
        found = self._recall(self.unit, architecture)
        if found is None:
            raise _JournalEndError
        return found


def _budgets(problem: Problem, recall: Recall) -> list[list[Limit]]:
    try:
        costs = [_cost(stored, recall) for stored in problem.limits]
        return [
            [Limit(cost, x.high, x.low) for cost, x in zip(costs, limits, strict=True)]
            for limits in problem.budgets
        ]
    except (BudgetError, ValueError, OverflowError) as error:
        raise _unusable(error) from error


def _cost(stored: StoredLimit, recall: Recall) -> CostModel:
    if stored.table is not None:
        return SizeTable(stored.table)
    if stored.sums is not None:
        return SumCost(stored.sums)
    return _Recorded(stored.unit, recall)


def _replay(
    problem: Problem,
    budgets: Sequence[Sequence[Limit]],
    recorded: _Evaluations,
    probe: Probe | None,
    recorder: Recorder,
) -> None:
    """Makes the search again, as far as the journal goes."""
    arguments: dict[str, Any] = {
        "sizes": problem.sizes,
        "score": _unknown,
        "settings": problem.settings,
        "evaluations": problem.evaluations,
        "seed": problem.seed,
        "executor": _nothing,
        "known": by_network(recorded),
        "names": [layer.name for layer in problem.layers],
        "hints": problem.hints,
        "probe": probe,
        "watch": recorder,
        "hidden_by": problem.hidden_by,
    }
    try:
        if problem.frontier:
            layer_nas_frontier(budgets=budgets, **arguments)
        else:
            layer_nas(limits=budgets[0], **arguments)
    except _JournalEndError:
        return
    except SearchError as error:
        if not recorder.scored:
            raise _unusable(error) from error
    except (CompressorError, ArithmeticError, ValueError, MemoryError) as error:
        raise _unusable(error) from error


def _unknown(architecture: Architecture) -> float:
    raise _JournalEndError(architecture)


def _unknown_around(architecture: Architecture) -> Hints:
    raise _JournalEndError(architecture)


def _nothing(judge: Judge, networks: Iterable[Architecture]) -> Iterator[Outcome]:
    """An executor that scores nothing; asked for the first network, it ends the search."""
    del judge
    for network in networks:
        raise _JournalEndError(network)
    yield from ()


def _compare(start: Start, recorded: _Evaluations, recorder: Recorder) -> None:
    """Holds the order of the search made again against that of the journal.

    What the search found in the journal when it started may come in any order, or not at all.
    """
    rows = {(a, outcome.repeat): row for row, (a, outcome) in enumerate(recorded)}
    made = [rows[e.architecture, e.repeat] for e in recorder.scored]
    found = [row for row in made if row >= start.known]
    wanted = list(range(start.known, len(recorded)))
    if found == wanted:
        return
    same = next((n for n, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), None)
    place = start.known + (min(len(found), len(wanted)) if same is None else same)
    was, now = start.problem.versions, versions()
    raise RunError(
        "a trace is the search made again from its journal, but from evaluation "
        f"{place} on it takes another course than the one recorded; it ran with {_listed(was)}, "
        f"and this is {_listed(now)}: make the trace with the same versions and on the machine of "
        "the run"
    )


def _listed(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items()) or "unknown versions"


def _unusable(error: Exception) -> RunError:
    return RunError(
        "a trace is the search made again from its journal, but what the journal notes about it "
        f"cannot be searched: {error}; the notes are broken or foreign, give another run"
    )
