"""From a reading to a network: costs, search, fine-tuning."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from compressor.cost import CostModel, is_exact
from compressor.deploy.export import export_base
from compressor.latency.confirming import Goal
from compressor.progress import Event, Progress
from compressor.refit.library import LayerLibrary, make_library
from compressor.run.latency_costs import exported, latency_costs
from compressor.run.reading import Reading
from compressor.run.request import Options, Request, Stopwatch
from compressor.run.searching import Scoring, finished_in_turn, goals_of, search_confirmed
from compressor.run.staff import staffed
from compressor.run.summary import Found
from compressor.score.finetune import kept_score
from compressor.score.scorer import Recipes, Scorer
from compressor.search.journal import Journal
from compressor.search.outcome import Candidate
from compressor.space import Architecture


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
    goals: list[Goal] = goals_of(request, costs, whole, reading.space.original, watch, progress)
    with watch.stage("sensitivity"):
        guide = scorer.guide(progress)
    with watch.stage("search"), staffed(request, scorer, guide, progress) as crew:
        scoring = Scoring(scorer, guide, crew, eligible)
        taken = search_confirmed(request, reading, goals, scoring, journal, progress)
    took = {a: sum(o.seconds for o in made) for a, made in journal.outcomes().items()}

    def finish(candidate: Candidate) -> tuple[nn.Module, float]:
        return _finished(options, scorer, candidate.architecture, watch, progress)

    done = finished_in_turn(taken, finish, lambda one, other: one[1] >= other[1])
    return tuple(
        Found(reading, library, one.search, candidate, model, score, base_score, goal, took)
        for one, goal, (candidate, (model, score)) in zip(taken, goals, done, strict=True)
    )


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

        def build(architecture: Architecture) -> bytes:
            return exported(request, scorer.build(architecture))

        costs["latency"], whole["latency"] = latency_costs(
            request, graph, reading.space, build, journal, watch, progress
        )
    return {unit: costs[unit] for unit in request.units}, whole
