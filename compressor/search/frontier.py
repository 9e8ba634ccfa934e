"""Several budgets for the price of one search. Knows no torch.

Every evaluation counts for every budget: what is learned of a layer's option at half the cost
holds at three quarters of it as well, so one history of scores teaches the searches of all
budgets, and a network counts wherever it keeps the limits. The searches take turns, each proposing
what promises the largest gain within its own limits.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from functools import cache

from compressor.cost import Limit
from compressor.errors import SearchError
from compressor.search.guided import FIRST, Guided
from compressor.search.ledger import Expected, Known, Ledger, OnAsk, OnOutcome, Score, open_ledger
from compressor.search.moves import Turned, Watch
from compressor.search.outcome import Executor, SearchResult
from compressor.search.reach import Costs, HiddenBy
from compressor.search.settings import SearchSettings
from compressor.search.steps import Probe
from compressor.search.trend import Hints

_DEFAULTS = SearchSettings()


def layer_nas_frontier(  # noqa: PLR0913
    *,
    sizes: Sequence[int],
    budgets: Sequence[Sequence[Limit]],
    score: Score,
    settings: SearchSettings = _DEFAULTS,
    evaluations: int = 100,
    seed: int = 0,
    executor: Executor = map,
    known: Known | None = None,
    on_outcome: OnOutcome | None = None,
    on_ask: OnAsk | None = None,
    names: Sequence[str] | None = None,
    hints: Hints | None = None,
    probe: Probe | None = None,
    watch: Watch | None = None,
    hidden_by: HiddenBy = (),
) -> tuple[SearchResult, ...]:
    """Finds the best network within each of several budgets, in one search.

    The best of a budget is the best of all networks within its limits, also of those that were
    looked for under tighter ones. So where one budget's limits include another's, its network
    never scores less (is never expected to score less, where scores are noisy). Otherwise like
    `layer_nas`, in its guided strategy: same arguments, same result; nothing above the limits of
    all budgets is scored.

    Args:
        sizes: number of options of each layer, in forward order; the last is the original.
        budgets: limits that hold together, for each network that is asked for; the first limit of
            each orders its frontier.
        score: higher is better; a network whose score raises or is not finite has failed.
        settings: how the search spends the evaluations.
        evaluations: networks to score at most, in all.
        seed: of all draws.
        executor: like `map`; gets one batch of networks at a time.
        known: outcomes of an interrupted run; they count, but are not scored again.
        on_outcome: called with each new outcome as soon as it is there; may raise.
        on_ask: called with all networks that are asked for at once, known ones among them, before
            the executor gets those that are not known.
        names: names of the layers for messages.
        hints: for each layer what each of its options costs on its own.
        probe: tells of a network what each option would cost in it; asked around the best network
            of each budget, once for each network.
        watch: told every move, and for which budget it is made; changes nothing.
        hidden_by: for each layer those that, all at their first option, leave it nothing to
            decide, as layers inside of a block that is dropped; what differs in nothing else is
            one network, and scored once. Empty where there are none.

    Returns:
        The result of each budget, in their order; they share what was scored.

    Raises:
        InfeasibleError: a budget that no network keeps, before anything is scored.
        SearchError: no network within a budget could be scored, fewer evaluations than budgets,
            or another strategy.
        BudgetError: a budget without a limit, or with two of one unit.
    """
    _check(budgets, settings, evaluations)
    measured: Costs = {}
    ledgers = [
        open_ledger(
            sizes=sizes,
            limits=limits,
            settings=settings,
            names=names,
            score=score,
            evaluations=evaluations,
            executor=executor,
            known=known,
            on_outcome=on_outcome,
            on_ask=on_ask,
            watch=watch,
            measured=measured,
            hidden_by=hidden_by,
        )
        for limits in budgets
    ]
    views = [ledgers[0].within(ledger.reach) for ledger in ledgers]
    for place, view in reversed(list(enumerate(views))):
        _turn(watch, place)
        view.ask([view.reach.witness])  # whatever fails later, every budget has a network
    rng = random.Random(seed)  # noqa: S311 - reproducible draws, no secrets
    if max(sizes, default=1) == 1:  # nothing to decide
        return _results(views, None)
    once = probe and cache(probe)  # one network may be the best of several budgets
    searches = [Guided(v, settings, _part(rng), hints, once) for v in views]
    _take_turns(ledgers[0], searches)
    return _results(views, None if settings.deterministic else searches[0].expected)


def _check(budgets: Sequence[Sequence[Limit]], settings: SearchSettings, evaluations: int) -> None:
    if settings.strategy != "guided":
        raise SearchError(
            "several budgets are searched at once by the guided strategy only, but got "
            f"{settings.strategy!r}; search each alone"
        )
    if not 1 <= len(budgets) <= evaluations:
        raise SearchError(
            "a frontier needs a budget, and an evaluation for each of its budgets, but got "
            f"{len(budgets)} budgets and {evaluations} evaluations; allow more evaluations"
        )


def _part(rng: random.Random) -> random.Random:
    return random.Random(rng.getrandbits(63))  # noqa: S311


def _take_turns(ledger: Ledger, searches: Sequence[Guided]) -> None:
    """Until the evaluations are spent, or no search has anything new left."""
    first = min(FIRST, max(1, ledger.left // 4))
    waiting = deque(enumerate(searches))
    for place, search in waiting:
        _turn(ledger.watch, place)
        search.start(max(1, first // len(searches)))
    while ledger.left and waiting:
        place, search = waiting.popleft()
        _turn(ledger.watch, place)
        if search.step():
            waiting.append((place, search))


def _results(views: Sequence[Ledger], expected: Expected | None) -> tuple[SearchResult, ...]:
    found = []
    for place, view in enumerate(views):
        _turn(view.watch, place)
        found.append(view.result(expected))
    return tuple(found)


def _turn(watch: Watch | None, place: int) -> None:
    if watch is not None:
        watch(Turned(place))
