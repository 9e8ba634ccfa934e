"""What a run notes about its searches in its journal. Knows no torch.

Resume is replay: with what a search was started with and the recorded evaluations, it can be made
again, move by move, without the network (`compressor.trace.retrace`). A run may start several
searches, or one again after an interruption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from compressor.cost import Limit, SizeTable, TableData
from compressor.errors import RunError, SearchError
from compressor.plain import decode, encode
from compressor.search.journal import Journal
from compressor.search.settings import SearchSettings
from compressor.search.trend import Hints
from compressor.space import Architecture, SearchSpace
from compressor.sum_table import Predicted, SumData
from compressor.versions import version_of

_SEARCHES, _GIVEN_UP = "searches", "given up"
_PACKAGES = ("layernas-compressor", "numpy")
_MOST_BUCKETS = 100_000  # far above what helps; a foreign journal cannot ask for all the memory


@dataclass(frozen=True)
class NamedLayer:
    """A search layer as a search sees it: its name, and its options in words."""

    name: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class StoredLimit:
    """A limit in the unit's base.

    Without a table the cost was measured, network by network, or predicted as a sum.
    """

    unit: str
    high: float
    table: TableData | None = None
    low: float | None = None
    sums: SumData | None = None


@dataclass(frozen=True)
class Problem:
    """Everything that decides a search, but for scores and measured costs.

    Attributes:
        layers: in forward order.
        limits: that hold together; the first orders the frontier.
        settings: of the search.
        evaluations: networks to score at most.
        seed: of all draws.
        hints: what each option costs alone, or None.
        probed: whether the best networks were probed; the answers are in the journal.
        versions: of the packages that the course of the search depends on.
        frontier: where a network is asked for within each of several budgets, the most that each
            may have of the first cost; empty where one network is asked for.
        hidden_by: as `SearchSpace.hidden_by`; empty where there is nothing of that kind.
    """

    layers: tuple[NamedLayer, ...]
    limits: tuple[StoredLimit, ...]
    settings: SearchSettings
    evaluations: int
    seed: int
    hints: tuple[tuple[float, ...], ...] | None = None
    probed: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
    frontier: tuple[float, ...] = ()
    hidden_by: tuple[tuple[int, ...], ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of options of each layer."""
        return tuple(len(layer.options) for layer in self.layers)

    @property
    def budgets(self) -> tuple[tuple[StoredLimit, ...], ...]:
        """Limits that hold together, for each network that is asked for."""
        first, *others = self.limits
        each = tuple((replace(first, high=high), *others) for high in self.frontier)
        return each or (self.limits,)


@dataclass(frozen=True)
class Start:
    """A search that was started when the journal held `known` evaluations."""

    problem: Problem
    known: int


@dataclass(frozen=True)
class _Starts:
    starts: tuple[Start, ...]


@dataclass(frozen=True)
class _GivenUp:
    architecture: Architecture
    images: int


@dataclass(frozen=True)
class _GivenUps:
    networks: tuple[_GivenUp, ...]


def state_problem(
    space: SearchSpace,
    budgets: Sequence[Sequence[Limit]],
    settings: SearchSettings,
    *,
    evaluations: int,
    seed: int,
    hints: Hints | None,
    probed: bool = False,
) -> Problem:
    """The problem as plain values; costs without a table or sums count as measured.

    Several budgets differ in the most of their first cost alone.
    """
    highs = tuple(float(limits[0].high) for limits in budgets)
    return Problem(
        layers=tuple(NamedLayer(x.name, tuple(map(str, x.choices))) for x in space.layers),
        limits=tuple(map(_stored, budgets[0])),
        settings=settings,
        evaluations=evaluations,
        seed=seed,
        hints=None if hints is None else tuple(tuple(map(float, row)) for row in hints),
        probed=probed,
        versions=versions(),
        frontier=highs if len(highs) > 1 else (),
        hidden_by=space.hidden_by if any(space.hidden_by) else (),
    )


def versions() -> dict[str, str]:
    """Of the packages that the course of a search depends on, as they are here."""
    return {name: version_of(name) for name in _PACKAGES}


def note_start(journal: Journal, problem: Problem) -> None:
    """Keeps what a search is started with; one that goes on after an interruption is kept once."""
    starts = _noted(journal)
    if not starts or starts[-1].problem != problem:
        start = Start(problem, len(journal.evaluations()))
        journal.put(_SEARCHES, encode(_Starts((*starts, start))))


def read_starts(journal: Journal) -> tuple[Start, ...]:
    """The searches of a run, in the order of their starts.

    Raises:
        RunError: the journal tells nothing about its searches, or what it tells cannot be.
    """
    starts = _noted(journal)
    if not starts:
        raise RunError(
            "a trace needs a journal that tells what its search was started with, but this one "
            "does not: it is of an earlier version; run the same `compressor compress` again, "
            "which adds it without scoring anything twice"
        )
    earlier = 0
    for start in starts:
        _check(start)
        if start.known < earlier:
            raise _broken(f"a search started after {start.known} evaluations")
        earlier = start.known
    return starts


def note_given_up(journal: Journal, architecture: Architecture, images: int) -> None:
    """Keeps that a candidate was given up after so many images: its score is an estimate."""
    found = read_given_up(journal) | {architecture: images}
    journal.put(_GIVEN_UP, encode(_GivenUps(tuple(_GivenUp(a, n) for a, n in found.items()))))


def read_given_up(journal: Journal) -> dict[Architecture, int]:
    """Candidates that were given up, and after how many images.

    Raises:
        RunError: the journal does not hold it in the form of `note_given_up`.
    """
    data = journal.get(_GIVEN_UP)
    try:
        found = () if data is None else decode(_GivenUps, data).networks
    except ValueError as error:
        raise _broken(str(error)) from error
    return {entry.architecture: entry.images for entry in found}


def _noted(journal: Journal) -> tuple[Start, ...]:
    data = journal.get(_SEARCHES)
    try:
        return () if data is None else decode(_Starts, data).starts
    except (ValueError, SearchError) as error:
        raise _broken(str(error)) from error


def _check(start: Start) -> None:
    """What the types do not say, and the search does not check."""
    problem = start.problem
    numbers = [limit.high for limit in problem.limits] + list(problem.frontier)
    numbers += [limit.low for limit in problem.limits if limit.low is not None]
    numbers += [number for row in problem.hints or () for number in row]
    if not all(map(math.isfinite, numbers)):
        raise _broken("a limit or a hint is not a finite number")
    if (problem.settings.buckets or 0) > _MOST_BUCKETS:
        raise _broken(f"it asks for {problem.settings.buckets} buckets")
    if not problem.layers or not problem.limits:
        raise _broken("a search has no layers or no limits")
    hidden = problem.hidden_by
    if hidden and len(hidden) != len(problem.layers):
        raise _broken(f"it tells of {len(hidden)} layers what hides them")
    if not all(0 <= i < len(hidden) for layers in hidden for i in layers):
        raise _broken("a layer is hidden by one that is not there")
    for limit in problem.limits:
        if limit.sums is not None and (limit.sums.sizes, limit.sums.unit) != (
            problem.sizes,
            limit.unit,
        ):
            raise _broken(f"the sums of {limit.unit} are of another search")
        if limit.table is None:
            continue
        if tuple(map(len, limit.table.cuts)) != problem.sizes:
            raise _broken(f"the table of {limit.unit} has other layers than the search")
        if limit.table.unit != limit.unit:
            raise _broken(f"a limit of {limit.unit} has a table of {limit.table.unit}")


def _stored(limit: Limit) -> StoredLimit:
    table = limit.cost.data if isinstance(limit.cost, SizeTable) else None
    low = None if limit.low is None else float(limit.low)
    sums = limit.cost.cost.data if isinstance(limit.cost, Predicted) else None
    return StoredLimit(limit.cost.unit, float(limit.high), table, low, sums)


def _broken(finding: str) -> RunError:
    return RunError(
        "a trace needs a journal whose notes about the search are whole, but they are broken or "
        f"foreign: {finding}; give another run"
    )
