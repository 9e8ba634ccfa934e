"""LayerNAS (Fan et al., arXiv 2304.11517) in two strategies. Knows no torch."""

from __future__ import annotations

import random
from collections.abc import Sequence

from compressor.cost import Limit
from compressor.search.guided import Guided
from compressor.search.ledger import Known, OnAsk, OnOutcome, Score, open_ledger
from compressor.search.moves import Watch
from compressor.search.outcome import Executor, SearchResult
from compressor.search.published import Published
from compressor.search.reach import HiddenBy
from compressor.search.settings import SearchSettings
from compressor.search.steps import Probe
from compressor.search.trend import Hints

__all__ = ["SearchSettings", "layer_nas"]

_DEFAULTS = SearchSettings()


def layer_nas(  # noqa: PLR0913
    *,
    sizes: Sequence[int],
    limits: Sequence[Limit],
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
) -> SearchResult:
    """Finds the best network within the limits.

    The same arguments give the same result, also where a part of the outcomes is already
    `known`. The result is never above a limit, and something within the limits is scored
    however few the evaluations.

    Args:
        sizes: number of options of each layer, in forward order; the last is the original.
        limits: costs with their limits; the first orders the frontier.
        score: higher is better; a network whose score raises or is not finite has failed.
        settings: strategy and how it spends the evaluations.
        evaluations: networks to score at most, failed and known ones included.
        seed: of all draws.
        executor: like `map`; gets one batch of networks at a time.
        known: outcomes of an interrupted run; they count, but are not scored again.
        on_outcome: called with each new outcome as soon as it is there; may raise.
        on_ask: called with all networks that are asked for at once, known ones among them, before
            the executor gets those that are not known.
        names: names of the layers for messages.
        hints: for each layer what each of its options costs on its own, on any scale, lower is
            better; the guided strategy starts from there.
        probe: tells of a network what each option would cost in it, where asking is far cheaper
            than a score; the guided strategy asks it around the best network. The same network
            must get the same answer.
        watch: told every move (`compressor.search.moves`); changes nothing.
        hidden_by: for each layer those that, all at their first option, leave it nothing to
            decide, as layers inside of a block that is dropped; what differs in nothing else is
            one network, and scored once. Empty where there are none.

    Raises:
        InfeasibleError: no network within the limits, before anything is scored.
        SearchError: no network within the limits could be scored.
        BudgetError: no limit was given, or two of one unit.
    """
    ledger = open_ledger(
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
        hidden_by=hidden_by,
    )
    rng = random.Random(seed)  # noqa: S311 - reproducible draws, no secrets
    if max(sizes, default=1) == 1:  # nothing to decide
        ledger.ask([ledger.reach.witness])
        return ledger.result()
    if settings.strategy == "published":
        Published(ledger, settings, rng).run()
        return ledger.result()
    guided = Guided(ledger, settings, rng, hints, probe)
    guided.run()
    return ledger.result(None if settings.deterministic else guided.expected)
