"""The search for one architecture, and the network that each task gets of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from compressor.errors import CheckError
from compressor.latency.confirming import Goal
from compressor.limits import ResolvedBudget
from compressor.multitask.costs import shared_costs
from compressor.multitask.preparing import Member, libraries_of
from compressor.multitask.rounds import ONE_ROUND, Learnt, Pupil, Rounds, learn_in_rounds
from compressor.multitask.scoring import JointScorer, Measured
from compressor.multitask.task import telling
from compressor.progress import Progress
from compressor.refit.library import LayerLibrary
from compressor.run.request import Stopwatch
from compressor.run.searching import Scoring, finished_in_turn, goals_of, search_confirmed
from compressor.run.summary import Found
from compressor.score.scorer import Recipes, Scorer
from compressor.search.journal import Journal
from compressor.search.ledger import pareto
from compressor.search.outcome import Candidate, SearchResult
from compressor.space import Architecture


@dataclass(frozen=True)
class Shared:
    """What was decided for all tasks within one goal.

    Attributes:
        search: what was scored; scores are minus the sums of normalised losses.
        architecture: the one that was taken.
        budgets: what was promised, of one encoder or of all networks.
        found: for each task its network, with scores and costs of its own.
        losses: of each task's network, as it is delivered.
        rounds: how the networks learnt after the search.
        learnt: what fine-tuning took; None without it.
    """

    search: SearchResult
    architecture: Architecture
    budgets: tuple[ResolvedBudget, ...]
    found: tuple[Found, ...]
    losses: tuple[float, ...]
    rounds: Rounds
    learnt: Learnt | None


@dataclass(frozen=True)
class _Finished:
    """The tasks' networks of an architecture, refitted and fine-tuned."""

    candidate: Candidate
    models: tuple[nn.Module, ...]
    ends: tuple[Measured, ...]
    rounds: Rounds
    learnt: Learnt | None


def find_shared(
    members: Sequence[Member],
    per: str,
    journal: Journal,
    watch: Stopwatch,
    progress: Progress,
    rounds: Rounds = ONE_ROUND,
) -> tuple[Shared, ...]:
    """Searches one architecture for all tasks, then refits and fine-tunes each task's network.

    Returns:
        What was found for each of the request's goals, the loosest first.

    Raises:
        BudgetError: the originals already meet the budget.
        InfeasibleError: nothing that can be reached meets it.
        SearchError: no architecture could be scored.
    """
    first = members[0].request
    with watch.stage("library"):
        libraries = libraries_of(members, progress)
    members = [
        replace(m, reading=replace(m.reading, space=library.space))
        for m, library in zip(members, libraries, strict=True)
    ]
    reading = members[0].reading
    scorers = [_scorer(m, library) for m, library in zip(members, libraries, strict=True)]
    costs, whole = shared_costs(members, scorers, per, journal, watch, progress)
    goals = goals_of(first, costs, whole, reading.space.original, watch, progress)

    def remember(architecture: Architecture, found: Sequence[Measured]) -> None:
        for member, measured in zip(members, found, strict=True):
            journal.record_cost(_key("loss", member), architecture, measured.loss)
            journal.record_cost(_key("score", member), architecture, measured.score)

    joint = JointScorer(
        scorers, [m.gauge for m in members], [m.base for m in members],
        [m.task.importance for m in members], remember,
    )  # fmt: skip
    with watch.stage("sensitivity"):
        guide = joint.guide(progress)
    with watch.stage("search"):
        scoring = Scoring(joint, guide)
        taken = search_confirmed(first, reading, goals, scoring, journal, progress)

    def finish(candidate: Candidate) -> _Finished:
        return _finished(members, scorers, candidate, rounds, watch, progress)

    done = finished_in_turn(
        taken, finish, lambda one, other: joint.total(one.ends) <= joint.total(other.ends)
    )
    return tuple(
        _shared(members, libraries, finished, one.search, goal, per, journal)
        for (_, finished), one, goal in zip(done, taken, goals, strict=True)
    )


def _scorer(member: Member, library: LayerLibrary) -> Scorer:
    request, options = member.request, member.request.options
    return Scorer(
        library, request.example, request.calibration, member.gauge,
        Recipes(options.refit, options.score_epochs, options.seed, options.keep),
        training=request.training, eligible=lambda _: False,
    )  # fmt: skip


def _finished(
    members: Sequence[Member],
    scorers: Sequence[Scorer],
    candidate: Candidate,
    rounds: Rounds,
    watch: Stopwatch,
    progress: Progress,
) -> _Finished:
    """The tasks' networks refitted and fine-tuned, with their losses and scores."""
    networks = []
    for scorer in scorers:
        with watch.stage("refit"):
            networks.append(scorer.finish(candidate.architecture, progress)[0])
    networks, learnt = _tuned(members, scorers, networks, rounds, watch, progress)
    ends = [m.gauge.measure(model) for m, model in zip(members, networks, strict=True)]
    return _Finished(candidate, tuple(networks), tuple(ends), rounds, learnt)


def _tuned(
    members: Sequence[Member],
    scorers: Sequence[Scorer],
    networks: list[nn.Module],
    rounds: Rounds,
    watch: Stopwatch,
    progress: Progress,
) -> tuple[list[nn.Module], Learnt | None]:
    """The tasks' networks fine-tuned in rounds, where that is asked for."""
    options = members[0].request.options
    if not options.finetune:
        return networks, None
    with watch.stage("fine-tune"):
        pupils = []
        for member, scorer, model in zip(members, scorers, networks, strict=True):
            with telling(member.task):
                learner = scorer.learner(model, options.finetune)
            pupils.append(Pupil(member.task, learner, member.request.calibration))
        learnt = learn_in_rounds(pupils, options.finetune, rounds, options.seed, progress)
    return [p.learner.kept() for p in pupils], learnt


def _shared(
    members: Sequence[Member],
    libraries: Sequence[LayerLibrary],
    finished: _Finished,
    search: SearchResult,
    goal: Goal,
    per: str,
    journal: Journal,
) -> Shared:
    # A latency per encoder is promised of every task's file; other budgets are of the encoder.
    promised = tuple(b for b in goal if b.budget.unit == "latency") if per == "encoder" else ()
    took = {a: sum(o.seconds for o in made) for a, made in journal.outcomes().items()}
    found = []
    for member, library, model, end in zip(
        members, libraries, finished.models, finished.ends, strict=True
    ):
        own = _own(search, member, journal, timed=bool(promised))
        candidate = _as_own(finished.candidate, member, journal, timed=bool(promised))
        found.append(
            Found(
                member.reading, library, own, candidate, model, end.score, member.base.score,
                promised, took,
            )
        )  # fmt: skip
    losses = tuple(end.loss for end in finished.ends)
    return Shared(
        search, finished.candidate.architecture, goal, tuple(found), losses,
        finished.rounds, finished.learnt,
    )  # fmt: skip


def _own(search: SearchResult, member: Member, journal: Journal, *, timed: bool) -> SearchResult:
    """The search as one task sees it: the same networks, with its own scores and costs."""
    scored = tuple(_as_own(c, member, journal, timed=timed) for c in search.scored)
    best = _as_own(search.best, member, journal, timed=timed)
    return replace(search, best=best, scored=scored, frontier=pareto(scored, "madds"))


def _as_own(candidate: Candidate, member: Member, journal: Journal, *, timed: bool) -> Candidate:
    """A candidate with a task's own score and costs; a latency, where told, is the search's."""
    reading, architecture = member.reading, candidate.architecture
    score = journal.cost(_key("score", member), architecture)
    if score is None:
        raise CheckError(
            "the journal must hold every task's score of every architecture, but lacks that of "
            f"{member.task.name!r} for {architecture}; start again with another --out"
        )
    costs: dict[str, float] = {
        "madds": reading.madds(architecture),
        "params": reading.params(architecture),
    }
    if timed:
        costs["latency"] = candidate.costs["latency"]
    return Candidate(architecture, costs, score)


def _key(what: str, member: Member) -> str:
    return f"{what} of {member.task.name}"


def normalised(members: Sequence[Member], losses: Sequence[float]) -> tuple[float, ...]:
    """Each task's loss as a multiple of the original network's."""
    return tuple(
        loss / m.base.loss if math.isfinite(loss) else math.inf
        for m, loss in zip(members, losses, strict=True)
    )
