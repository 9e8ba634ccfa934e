"""What was found and made, as the plain values of `result.json`."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from compressor.cost import layer_control
from compressor.deploy.export import ExportReport
from compressor.deploy.int8 import Int8
from compressor.device import agent
from compressor.device.local import LOCAL
from compressor.device.profile import Profile
from compressor.device.timing import Latency
from compressor.limits import ResolvedBudget
from compressor.network.data import device_of, tensors_hash
from compressor.refit.library import LayerLibrary
from compressor.report.result import (
    BudgetRow,
    Figures,
    FrontierPoint,
    RunSummary,
    ScoredRow,
    layer_rows,
)
from compressor.run.reading import Reading
from compressor.run.request import Request, Stopwatch
from compressor.search.outcome import Candidate, SearchResult
from compressor.space import Architecture
from compressor.versions import version_of

_PACKAGES = (
    "layernas-compressor", "torch", "torch-pruning", "onnx", "onnxruntime", "onnxscript", "numpy",
    "plotly",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What the search decided and what became of it.

    Attributes:
        reading: the network as it was read.
        library: what ranked its channels, and refitted its weights where that was asked for.
        search: what was scored.
        candidate: the network that was taken.
        model: it, calibrated and fine-tuned.
        score: of `model`.
        base_score: of the original.
        budgets: what was promised; empty where it was not of this network alone.
        took: seconds that the evaluations of each network took.
    """

    reading: Reading
    library: LayerLibrary
    search: SearchResult
    candidate: Candidate
    model: nn.Module
    score: float
    base_score: float
    budgets: tuple[ResolvedBudget, ...]
    took: Mapping[Architecture, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """What was exported and measured; latencies and profiles under the files' names.

    Of another device, processor and version of ONNX Runtime, where it tells them.
    """

    original: ExportReport
    compressed: ExportReport
    int8: Int8 | None
    latency: Mapping[str, Latency]
    profiles: Mapping[str, Profile]
    processor: str = ""
    runtime: str = ""

    @property
    def deployed(self) -> str:
        """The file that a budget of latency applies to."""
        return "compressed" if self.int8 is None else "int8"


def summarise(request: Request, found: Found, made: Made, watch: Stopwatch) -> RunSummary:
    """Everything that a finished run's reader needs."""
    reading, space = found.reading, found.reading.space
    chosen, original = found.candidate.architecture, space.original
    latency = made.latency
    unit = found.budgets[0].budget.unit if found.budgets else "madds"
    base = _figures(reading, original, found.base_score, made.original.bytes, latency["original"])
    best = _figures(reading, chosen, found.score, made.compressed.bytes, latency["compressed"])
    int8 = made.int8
    quantised = None
    if int8 is not None:
        quantised = _figures(reading, chosen, int8.score, len(int8.data), latency["int8"])
    return RunSummary(
        base=base,
        best=best,
        architecture=chosen,
        choices=space.describe(chosen),
        widths=layer_rows(space, chosen, layer_control(reading.madds, space)),
        int8=quantised,
        budgets=budget_rows(found, made.latency[made.deployed]),
        evaluations=len(found.search.scored),
        failed=len(found.search.failed),
        seconds=watch.seconds,
        stages=dict(watch.stages),
        frozen=space.frozen,
        sliced=found.library.sliced if request.options.refit else (),
        unranked=found.library.unranked,
        frontier=frontier(reading, found.search.frontier),
        scored=tuple(
            ScoredRow(i, float(c.costs[unit]), c.score) for i, c in enumerate(found.search.scored)
        ),
        times=tuple(found.took.get(c.architecture, 0.0) for c in found.search.scored),
        settings=_settings(request),
        versions={name: version_of(name) for name in _PACKAGES},
        machine=_machine(request, made),
        data=request.data,
        profiles=made.profiles,
        command=request.options.command,
    )


def _machine(request: Request, made: Made) -> dict[str, str | int]:
    """Where the run was made, and where latency was measured."""
    options, here = request.options, agent.facts()["processor"]
    facts: dict[str, str | int] = {
        "processor": here,
        "cores": os.cpu_count() or 0,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch threads": torch.get_num_threads(),
        "torch device": str(device_of(request.model)),
        "latency measured on": options.device.name,
    }
    if options.device.name != LOCAL:
        facts |= {
            "latency device": made.processor or "does not tell what it is",
            "ONNX Runtime there": made.runtime or "not told",
        }
    return {**facts, "runtime threads": options.threads, "provider": options.provider}


def frontier(reading: Reading, candidates: Sequence[Candidate]) -> tuple[FrontierPoint, ...]:
    """Scored networks that no cheaper one beats, with their costs."""
    return tuple(
        FrontierPoint(
            c.architecture,
            reading.madds(c.architecture),
            reading.params(c.architecture),
            c.score,
            c.costs.get("latency"),
        )
        for c in candidates
    )


def _figures(
    reading: Reading,
    architecture: tuple[int, ...],
    score: float | None,
    size: int,
    latency: Latency,
) -> Figures:
    return Figures(
        madds=reading.madds(architecture),
        params=reading.params(architecture),
        score=score,
        latency_ms=latency.median_ms,
        file_bytes=size,
    )


def budget_rows(found: Found, latency: Latency) -> tuple[BudgetRow, ...]:
    """What was promised, and what the network that is delivered came to."""
    reading, architecture = found.reading, found.candidate.architecture
    exact = {"madds": reading.madds(architecture), "params": reading.params(architecture)}
    return tuple(budget_row(budget, exact, latency) for budget in found.budgets)


def budget_row(
    resolved: ResolvedBudget, exact: Mapping[str, float], latency: Latency | None = None
) -> BudgetRow:
    """One promise and what came of it: an exact cost by its unit, or else what was measured."""
    unit, limit, low = resolved.budget.unit, resolved.high, resolved.low
    if latency is None or unit in exact:
        return BudgetRow(unit, str(resolved.budget), float(limit), float(exact[unit]), low)
    if resolved.budget.relative:
        # A share of the original is promised against the original of the same measurement.
        original = latency.median_ms / latency.ratio
        limit, low = resolved.budget.limit(original), resolved.budget.least(original)
        upper = latency.ratio_high * original
    else:
        upper = latency.high_ms
    return BudgetRow(unit, str(resolved.budget), float(limit), latency.median_ms, low, upper)


def _settings(request: Request) -> dict[str, str | int | float | bool | None]:
    options, folder = request.options, request.options.latency_folder
    return {
        "budget": ", ".join(str(b) for b in request.budgets),
        "evaluations": options.evaluations,
        "finetune": options.finetune,
        "score": request.score_name,
        "score_epochs": options.score_epochs,
        "keep": options.keep,
        "seed": options.seed,
        "adapter": options.adapter,
        "threads": options.threads,
        "provider": options.provider,
        "device": options.device.name,
        "refit": options.refit,
        "ranking": options.ranked_by,
        "int8": options.int8,
        "drop_blocks": options.drop_blocks,
        "batch": options.asked,
        "workers": options.workers,
        "latency_folder": None if folder is None else str(folder),
        "original_sha256": tensors_hash(request.model.state_dict().items()),
        **options.origin,
    }
