"""From a reading to a network: costs, search, confirmation, fine-tuning."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from compressor.cost import CostModel, is_exact
from compressor.deploy.export import export_base, export_onnx
from compressor.deploy.quantise import quantise_for_timing
from compressor.device.local import LOCAL
from compressor.device.timing import Schedule
from compressor.latency.confirming import Goal, adjusted, confirmed, predicted_latency, searched
from compressor.latency.cost import LatencyCost, measurer_on
from compressor.limits import ResolvedBudget, resolve_budgets
from compressor.progress import Event, Progress
from compressor.refit.library import LayerLibrary, make_library
from compressor.run.delivery import ONNX, measure_settings
from compressor.run.reading import Reading
from compressor.run.request import Options, Request, Stopwatch
from compressor.run.staff import staffed
from compressor.run.summary import Found
from compressor.run.watcher import Watcher
from compressor.score.finetune import kept_score
from compressor.score.rounds import Crew, Rounds
from compressor.score.scorer import Guide, Recipes, Scorer
from compressor.search.frontier import layer_nas_frontier
from compressor.search.journal import Journal
from compressor.search.layer_nas import SearchSettings, layer_nas
from compressor.search.ledger import Known
from compressor.search.notes import note_given_up, note_start, state_problem
from compressor.search.outcome import Outcome, SearchResult
from compressor.search.recall import recalled
from compressor.space import Architecture

_CANDIDATE = Schedule(warmup=20, repeats=5, rounds=8, seconds=1.0)
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


def find(
    request: Request,
    reading: Reading,
    base_score: float,
    journal: Journal,
    watch: Stopwatch,
    progress: Progress,
) -> tuple[Found, ...]:
    """Searches, takes the best network, and fine-tunes it; each where several are asked for.

    Args:
        request: what was asked for.
        reading: the network as it was read.
        base_score: of the original.
        journal: of this run; what it knows is not evaluated again.
        watch: gets the time of each stage.
        progress: told after each evaluation and epoch.

    Returns:
        What was found for each of the request's goals, the loosest first.

    Raises:
        BudgetError: the original already meets the budget.
        InfeasibleError: nothing that can be reached meets it.
        SearchError: no network could be scored.
        DataError: the training data or the score does not fit the network that was found.
    """
    options = request.options
    library = _library(request, reading, watch, progress)
    # The library ranks the channels anew: the same costs, another choice of what to keep.
    reading = replace(reading, space=library.space)
    recipes = Recipes(options.refit, options.score_epochs, options.seed, options.keep)

    def eligible(architecture: Architecture) -> bool:
        """Whether the exact costs keep their limits, and all costs the tightest of a frontier."""
        tightest = [b for b in goals[-1] if is_exact(b.limit()) or len(goals) > 1]
        return all(b.holds(b.cost(architecture)) for b in tightest)

    scorer = Scorer(
        library, request.example, request.calibration, request.score, recipes,
        training=request.training, eligible=eligible,
    )  # fmt: skip
    costs, whole = _costs(request, reading, journal, scorer, watch, progress)
    # Shares are of what the original was measured to take, not of what is predicted for it.
    resolved = [resolve_budgets(goal, whole, reading.space.original) for goal in request.goals]
    goals: list[Goal] = [
        tuple(replace(b, cost=costs[b.budget.unit]) for b in goal) for goal in resolved
    ]
    with watch.stage("latency table"):
        goals = list(adjusted(goals, progress))
    goals.sort(key=lambda goal: -goal[0].high)
    with watch.stage("sensitivity"):
        guide = scorer.guide(progress)
    with watch.stage("search"), staffed(request, scorer, guide, progress) as crew:
        scoring = Scoring(scorer, guide, crew, eligible)

        def every(goals: Sequence[Goal]) -> tuple[SearchResult, ...]:
            return run_search(request, reading, goals, scoring, journal, progress)

        def again(goal: Goal) -> SearchResult:
            shorter = max(_FEWEST, request.options.evaluations // _SHORTER)
            options = replace(request.options, evaluations=shorter)
            asked = replace(request, options=options, frontier=())
            return run_search(asked, reading, [goal], scoring, journal, progress)[0]

        settings = measure_settings(request, _CANDIDATE)
        results, given = searched(goals, settings, every)
        taken = [
            confirmed(result, goal, settings, again, within)
            for result, goal, within in zip(results, goals, given, strict=True)
        ]
    took = {a: sum(o.seconds for o in made) for a, made in journal.outcomes().items()}
    found: list[Found] = []
    for (result, candidate), goal in reversed(
        [((t.search, t.candidate), g) for t, g in zip(taken, goals, strict=True)]
    ):
        if found and candidate.architecture == found[-1].candidate.architecture:
            found.append(replace(found[-1], search=result, budgets=goal))
            continue
        model, score = _finished(options, scorer, candidate.architecture, watch, progress)
        new = Found(reading, library, result, candidate, model, score, base_score, goal, took)
        # Finished networks may rank otherwise: a looser budget never gets less than a tighter one.
        worse = found and found[-1].score >= score
        found.append(replace(found[-1], search=result, budgets=goal) if worse else new)
    return tuple(reversed(found))


def _finished(
    options: Options,
    scorer: Scorer,
    architecture: Architecture,
    watch: Stopwatch,
    progress: Progress,
) -> tuple[nn.Module, float]:
    """The network refitted and fine-tuned, and its score."""
    with watch.stage("refit"):
        model, score = scorer.finish(architecture, progress)
    epochs = options.finetune or options.score_epochs
    if epochs:
        with watch.stage("fine-tune"):
            model, scores = scorer.tuned(model, epochs, progress)
        score = kept_score(scores, options.keep)
    return model, score


def _library(
    request: Request, reading: Reading, watch: Stopwatch, progress: Progress
) -> LayerLibrary:
    options = request.options
    with watch.stage("library"):
        return make_library(
            request.model, reading.space, request.example, request.calibration, progress,
            ranking=options.ranked_by, refit=options.refit,
        )  # fmt: skip


def _costs(
    request: Request,
    reading: Reading,
    journal: Journal,
    scorer: Scorer,
    watch: Stopwatch,
    progress: Progress,
) -> tuple[dict[str, CostModel], dict[str, CostModel]]:
    """Every cost that a budget names: as the search asks for it, and exact or measured."""
    costs: dict[str, CostModel] = {"madds": reading.madds, "params": reading.params}
    whole = dict(costs)
    if "latency" in request.units:
        with watch.stage("graph"):
            progress(Event("graph", 0, 1, "exporting the network once"))
            graph = export_base(request.model, request.example)
            progress(Event("graph", 1, 1))
        settings = measure_settings(request, _CANDIDATE)

        def cost(unit: str, **how: Any) -> LatencyCost:
            return LatencyCost(
                graph,
                reading.space,
                settings,
                recall=lambda a: journal.cost(unit, a),
                remember=lambda a, value: journal.record_cost(unit, a, value),
                fallback=lambda a: _exported(request, scorer.build(a)),
                measurer=measurer_on(request.options.device),
                **how,
            )

        measured = (
            cost("latency", prepare=quantise_for_timing, whole=cost("latency in single precision"))
            if request.options.int8
            else cost("latency")
        )
        whole["latency"] = measured
        why = _unpredictable(request.options)
        if why:
            costs["latency"] = measured
            progress(Event("latency table", 1, 1, f"each candidate is measured: {why}"))
            return {unit: costs[unit] for unit in request.units}, whole
        with watch.stage("latency table"):
            costs["latency"] = predicted_latency(
                graph, reading.space, measured, settings, journal, progress,
                request.options.latency_folder,
            )  # fmt: skip
    return {unit: costs[unit] for unit in request.units}, whole


def _unpredictable(options: Options) -> str:
    """Why latency cannot be predicted from operators; empty where it can."""
    if options.int8:
        return "operators of 8 bits are not in the table"
    # Which operators are fused, and how they are laid out, differs from processor to processor.
    return "" if options.device.name == LOCAL else "the table is of this machine's operators"


def _exported(request: Request, model: nn.Module) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        path = export_onnx(model, request.example, Path(scratch) / ONNX).path
        return path.read_bytes()


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
