"""One search or several, within a run: goals in numbers, the search itself, and confirmation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from compressor.cost import CostModel
from compressor.device.timing import Schedule
from compressor.latency.confirming import Confirmed, Goal, adjusted, confirmed, searched
from compressor.limits import ResolvedBudget, resolve_budgets
from compressor.progress import Progress
from compressor.run.delivery import measure_settings
from compressor.run.reading import Reading
from compressor.run.request import Request, Stopwatch
from compressor.run.watcher import Watcher
from compressor.score.rounds import Crew, Rounds
from compressor.score.scorer import Guide, Scorer
from compressor.search.frontier import layer_nas_frontier
from compressor.search.journal import Journal
from compressor.search.layer_nas import SearchSettings, layer_nas
from compressor.search.ledger import Known
from compressor.search.notes import note_given_up, note_start, state_problem
from compressor.search.outcome import Candidate, Outcome, SearchResult
from compressor.search.recall import recalled
from compressor.space import Architecture

T = TypeVar("T")

CANDIDATE = Schedule(warmup=20, repeats=5, rounds=8, seconds=1.0)
"""How a network is timed during a search."""

_SHORTER, _FEWEST = 4, 10  # a search with a tighter limit: one in so many evaluations, at least


class Scores(Protocol):
    """What a search needs of whatever scores its architectures."""

    @property
    def note(self) -> str:
        """What a reader should know about how candidates are scored; empty where nothing."""

    def __call__(self, architecture: Architecture) -> float:
        """The score of an architecture, higher is better."""

    def resume(self, known: Known) -> None:
        """Takes over what an interrupted run has found out."""

    def given_up(self, architecture: Architecture) -> int | None:
        """After how many images a candidate was given up; None where it was not."""


@dataclass(frozen=True)
class Scoring:
    """What scores, what is known of single choices, who does it, and what others may be held to.

    Attributes:
        scorer: a network to its score; a `Scorer` where a crew works for it.
        guide: what every choice costs on its own.
        crew: processes that score, if there are any.
        eligible: which networks others are compared with while a crew scores them.
    """

    scorer: Scores
    guide: Guide
    crew: Crew | None = None
    eligible: Callable[[Architecture], bool] = lambda _: True


def run_search(
    request: Request,
    reading: Reading,
    goals: Sequence[Sequence[ResolvedBudget]],
    scoring: Scoring,
    journal: Journal,
    progress: Progress,
) -> tuple[SearchResult, ...]:
    """Searches for each of the goals; every outcome is in the journal before the next begins."""
    options, limits = request.options, [[b.limit() for b in goal] for goal in goals]
    scorer, crew, guide = scoring.scorer, scoring.crew, scoring.guide
    probe = guide.probe if guide.probe is None or crew is None else crew.probe
    known = journal.outcomes()
    watcher = Watcher(options.evaluations, limits, known, progress)

    def note(architecture: Architecture, outcome: Outcome) -> None:
        costs = {limit.cost.unit: float(limit.cost(architecture)) for limit in limits[0]}
        images = scorer.given_up(architecture)
        if images is not None:
            note_given_up(journal, architecture, images)
        journal.record(architecture, outcome, costs)
        watcher.add(architecture, outcome, scorer.note)

    def measure(networks: Sequence[Architecture]) -> None:
        """What a round costs, before it is scored: nothing is measured while workers work."""
        for goal in limits:
            for limit in goal:
                for network in networks:
                    limit.cost(network)

    settings = SearchSettings(batch=options.asked)
    evaluations, seed = options.evaluations, options.seed
    note_start(journal, state_problem(
        reading.space, limits, settings,
        evaluations=evaluations, seed=seed, hints=guide.hints, probed=probe is not None,
    ))  # fmt: skip
    problem: dict[str, Any] = {
        "sizes": reading.space.sizes,
        "score": scorer,
        "settings": settings,
        "evaluations": evaluations,
        "seed": seed,
        "known": known,
        "on_outcome": note,
        "names": [layer.name for layer in reading.space.layers],
        "hints": guide.hints,
        "probe": probe and recalled(probe, journal),
        "hidden_by": reading.space.hidden_by,
    }
    if crew is None:
        scorer.resume(known)
    else:
        assert isinstance(scorer, Scorer)  # noqa: S101  (see `Scoring`)
        rounds = Rounds(crew, scorer, scoring.eligible, measure, known)
        problem |= {"executor": rounds, "on_ask": rounds.ask}
    if request.frontier:
        return layer_nas_frontier(budgets=limits, **problem)
    return (layer_nas(limits=limits[0], **problem),)


def goals_of(
    request: Request,
    costs: Mapping[str, CostModel],
    whole: Mapping[str, CostModel],
    original: Architecture,
    watch: Stopwatch,
    progress: Progress,
) -> list[Goal]:
    """The request's goals in numbers, the loosest first.

    Args:
        request: what was asked for.
        costs: of each unit, as the search asks for it.
        whole: of each unit, exact or measured: what shares are of.
        original: the architecture of the original network.
        watch: gets the time of each stage.
        progress: told of networks that are timed.

    Raises:
        BudgetError: the original already meets a goal.
    """
    # Shares are of what the original was measured to take, not of what is predicted for it.
    resolved = [resolve_budgets(goal, whole, original) for goal in request.goals]
    goals: list[Goal] = [
        tuple(replace(b, cost=costs[b.budget.unit]) for b in goal) for goal in resolved
    ]
    with watch.stage("latency table"):
        goals = list(adjusted(goals, progress))
    return sorted(goals, key=lambda goal: -goal[0].high)


def finished_in_turn(
    taken: Sequence[Confirmed],
    finish: Callable[[Candidate], T],
    at_least: Callable[[T, T], bool],
) -> list[tuple[Candidate, T]]:
    """What is finished for each goal: its candidate, and what `finish` makes of it.

    Finished networks may rank otherwise than candidates: a looser budget never gets less than a
    tighter one, and an architecture that both take is finished once.

    Args:
        taken: for each goal, the loosest first.
        finish: refits and fine-tunes a network.
        at_least: whether the first is at least as good as the second.
    """
    done: list[tuple[Candidate, T]] = []
    for one in reversed(taken):
        if done and one.candidate.architecture == done[-1][0].architecture:
            done.append(done[-1])
            continue
        new = finish(one.candidate)
        done.append(done[-1] if done and at_least(done[-1][1], new) else (one.candidate, new))
    return done[::-1]


def search_confirmed(
    request: Request,
    reading: Reading,
    goals: Sequence[Goal],
    scoring: Scoring,
    journal: Journal,
    progress: Progress,
) -> list[Confirmed]:
    """What is taken for each goal; under a latency budget, what a longer measurement confirms.

    Raises:
        InfeasibleError: nothing that can be reached keeps a goal.
        SearchError: no network could be scored.
    """

    def every(goals: Sequence[Goal]) -> tuple[SearchResult, ...]:
        return run_search(request, reading, goals, scoring, journal, progress)

    def again(goal: Goal) -> SearchResult:
        shorter = max(_FEWEST, request.options.evaluations // _SHORTER)
        options = replace(request.options, evaluations=shorter)
        asked = replace(request, options=options, frontier=())
        return run_search(asked, reading, [goal], scoring, journal, progress)[0]

    settings = measure_settings(request, CANDIDATE)
    results, given = searched(goals, settings, every)
    return [
        confirmed(result, goal, settings, again, within)
        for result, goal, within in zip(results, goals, given, strict=True)
    ]
