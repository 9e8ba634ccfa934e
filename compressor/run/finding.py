"""From a reading to a network: costs, search, confirmation, fine-tuning."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from compressor.cost import CostModel, Limit, is_exact
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
from compressor.run.summary import Found
from compressor.score.finetune import kept_score
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
    with watch.stage("search"):

        def every(goals: Sequence[Goal]) -> tuple[SearchResult, ...]:
            return _search(request, reading, goals, scorer, journal, guide, progress)

        def again(goal: Goal) -> SearchResult:
            shorter = max(_FEWEST, request.options.evaluations // _SHORTER)
            options = replace(request.options, evaluations=shorter)
            asked = replace(request, options=options, frontier=())
            return _search(asked, reading, [goal], scorer, journal, guide, progress)[0]

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


def _search(
    request: Request,
    reading: Reading,
    goals: Sequence[Sequence[ResolvedBudget]],
    scorer: Scorer,
    journal: Journal,
    guide: Guide,
    progress: Progress,
) -> tuple[SearchResult, ...]:
    options, limits = request.options, [[b.limit() for b in goal] for goal in goals]
    known = journal.outcomes()
    scorer.resume(known)
    watcher = _Watcher(options.evaluations, limits, known, progress)

    def note(architecture: Architecture, outcome: Outcome) -> None:
        costs = {limit.cost.unit: float(limit.cost(architecture)) for limit in limits[0]}
        images = scorer.given_up(architecture)
        if images is not None:
            note_given_up(journal, architecture, images)
        journal.record(architecture, outcome, costs)
        watcher.add(architecture, outcome, scorer.note)

    settings, evaluations, seed = SearchSettings(), options.evaluations, options.seed
    note_start(journal, state_problem(
        reading.space, limits, settings,
        evaluations=evaluations, seed=seed, hints=guide.hints, probed=guide.probe is not None,
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
        "probe": guide.probe and recalled(guide.probe, journal),
        "hidden_by": reading.space.hidden_by,
    }
    if request.frontier:
        return layer_nas_frontier(budgets=limits, **problem)
    return (layer_nas(limits=limits[0], **problem),)


class _Watcher:
    """Tells how far the search is and what the best scores within the limits are."""

    def __init__(
        self,
        total: int,
        limits: Sequence[Sequence[Limit]],
        known: Known,
        progress: Progress,
    ) -> None:
        self._total, self._limits, self._progress = total, limits, progress
        self._best: list[float | None] = [None] * len(limits)
        self._done = 0
        earlier = [(a, outcome) for a, outcomes in known.items() for outcome in outcomes]
        for architecture, outcome in earlier[:total]:
            self._note(architecture, outcome)
        self._tell("resumed" if known else "")

    def add(self, architecture: Architecture, outcome: Outcome, more: str = "") -> None:
        """One more evaluation, and what else there is to tell."""
        self._note(architecture, outcome)
        failed = f"last failed: {outcome.reason}" if outcome.score is None else ""
        self._tell(", ".join(part for part in (failed, more) if part))

    def _note(self, architecture: Architecture, outcome: Outcome) -> None:
        self._done += 1
        score = outcome.score
        for place, (best, limits) in enumerate(zip(self._best, self._limits, strict=True)):
            if score is None or (best is not None and score <= best):
                continue
            if all(limit.holds(limit.cost(architecture)) for limit in limits):
                self._best[place] = score

    def _tell(self, more: str) -> None:
        texts = ["–" if best is None else f"{best:.4f}" for best in self._best]
        known = any(best is not None for best in self._best)
        best = f"best score in budget {' / '.join(texts)}" if known else ""
        note = ", ".join(part for part in (best, more) if part)
        self._progress(Event("search", min(self._done, self._total), self._total, note))
