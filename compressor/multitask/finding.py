"""The search for one architecture, and the network that each task gets of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from compressor.cost import SizeTable
from compressor.errors import CheckError
from compressor.limits import ResolvedBudget, resolve_budgets
from compressor.multitask.preparing import Member, costs_of, libraries_of
from compressor.multitask.scoring import JointScorer, Measured
from compressor.progress import Progress
from compressor.refit.library import LayerLibrary
from compressor.run.request import Stopwatch
from compressor.run.searching import Scoring, run_search
from compressor.run.summary import Found
from compressor.score.scorer import Recipes, Scorer
from compressor.search.journal import Journal
from compressor.search.ledger import pareto
from compressor.search.outcome import Candidate, SearchResult
from compressor.space import Architecture


@dataclass(frozen=True)
class Shared:
    """What the search decided for all tasks.

    Attributes:
        search: what was scored; scores are minus the sums of normalised losses.
        budgets: what was promised, of one encoder or of all networks.
        found: for each task its network, with scores and costs of its own.
        losses: of each task's network, as it is delivered.
    """

    search: SearchResult
    budgets: tuple[ResolvedBudget, ...]
    found: tuple[Found, ...]
    losses: tuple[float, ...]


def find_shared(
    members: Sequence[Member], per: str, journal: Journal, watch: Stopwatch, progress: Progress
) -> Shared:
    """Searches one architecture for all tasks, then refits and fine-tunes each task's network.

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
    costs: Mapping[str, SizeTable] = costs_of(members, per)
    goal = resolve_budgets(first.budgets, costs, members[0].reading.space.original)
    scorers = [_scorer(m, library) for m, library in zip(members, libraries, strict=True)]

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
        search = run_search(first, members[0].reading, [goal], scoring, journal, progress)[0]
    took = {a: sum(o.seconds for o in made) for a, made in journal.outcomes().items()}
    found, losses = [], []
    for member, library, scorer in zip(members, libraries, scorers, strict=True):
        made, loss = _finished(member, library, scorer, search, watch, progress)
        found.append(replace(made, search=_own(search, member, journal), took=took))
        losses.append(loss)
    return Shared(search, goal, tuple(found), tuple(losses))


def _scorer(member: Member, library: LayerLibrary) -> Scorer:
    request, options = member.request, member.request.options
    return Scorer(
        library, request.example, request.calibration, member.gauge,
        Recipes(options.refit, options.score_epochs, options.seed, options.keep),
        training=request.training, eligible=lambda _: False,
    )  # fmt: skip


def _finished(
    member: Member,
    library: LayerLibrary,
    scorer: Scorer,
    search: SearchResult,
    watch: Stopwatch,
    progress: Progress,
) -> tuple[Found, float]:
    """The task's network refitted and fine-tuned, with its loss."""
    with watch.stage("refit"):
        model, _ = scorer.finish(search.best.architecture, progress)
    epochs = member.request.options.finetune
    if epochs:
        with watch.stage("fine-tune"):
            model, _ = scorer.tuned(model, epochs, progress)
    end = member.gauge.measure(model)
    found = Found(
        member.reading, library, search, search.best, model, end.score, member.base.score, ()
    )
    return found, end.loss


def _own(search: SearchResult, member: Member, journal: Journal) -> SearchResult:
    """The search as one task sees it: the same networks, with its own scores and costs."""
    reading = member.reading

    def own(candidate: Candidate) -> Candidate:
        score = journal.cost(_key("score", member), candidate.architecture)
        if score is None:
            raise CheckError(
                "the journal must hold every task's score of every architecture, but lacks that "
                f"of {member.task.name!r} for {candidate.architecture}; start again with another "
                "--out"
            )
        architecture = candidate.architecture
        costs = {"madds": reading.madds(architecture), "params": reading.params(architecture)}
        return Candidate(architecture, costs, score)

    scored = tuple(own(c) for c in search.scored)
    return replace(search, best=own(search.best), scored=scored, frontier=pareto(scored, "madds"))


def _key(what: str, member: Member) -> str:
    return f"{what} of {member.task.name}"


def normalised(members: Sequence[Member], losses: Sequence[float]) -> tuple[float, ...]:
    """Each task's loss as a multiple of the original network's."""
    return tuple(
        loss / m.base.loss if math.isfinite(loss) else math.inf
        for m, loss in zip(members, losses, strict=True)
    )
