"""From the network that was found to files that were proved: export, measure, report."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from compressor.budget import format_cost
from compressor.cost import layer_control
from compressor.deploy import artefacts
from compressor.deploy.export import ExportReport, export_onnx
from compressor.deploy.int8 import INT8, Int8, quantised_network, score_of_file
from compressor.device.local import LOCAL
from compressor.device.measure import Settings, measure
from compressor.device.profile import Profile
from compressor.device.profiling import profile_models
from compressor.device.timing import Latency, Schedule
from compressor.errors import CheckError
from compressor.files import write_atomic
from compressor.limits import ResolvedBudget
from compressor.network.data import Batches, Inputs, split, tensors_hash
from compressor.refit.library import LayerLibrary
from compressor.report.page import FILE_NAME, write_report
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
from compressor.versions import version_of

ONNX = "model.onnx"
SHA256 = "compressor.original_sha256"
_SAMPLES = 2  # calibration batches on which ONNX is compared with torch
_PROFILED = 20  # runs of each file
_ATTEMPTS = 3  # measurements of a network that misses its budget: other programs only slow it down
_FINAL = Schedule(rounds=20, seconds=8.0)
_PACKAGES = (
    "layernas-compressor", "torch", "torch-pruning", "onnx", "onnxruntime", "onnxscript", "numpy",
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
        budgets: what was promised.
    """

    reading: Reading
    library: LayerLibrary
    search: SearchResult
    candidate: Candidate
    model: nn.Module
    score: float
    base_score: float
    budgets: tuple[ResolvedBudget, ...]


def measure_settings(request: Request, schedule: Schedule) -> Settings:
    """How this run measures latency."""
    return Settings(request.options.threads, request.options.provider, schedule)


def deliver(request: Request, found: Found, folder: Path, watch: Stopwatch) -> RunSummary:
    """Writes every file of a finished run, once everything it promises was checked.

    Raises:
        CheckError: ONNX and torch or the quantised file disagree, or the measured latency is above
            the budget.
        ExportError: the network cannot be exported or quantised.
        DeviceError: the device on which it is measured fails.
        RunError: the directory cannot be written.
    """
    architecture = found.candidate.architecture
    with tempfile.TemporaryDirectory() as scratch:
        with watch.stage("export"):
            original = _export(request, request.model, Path(scratch) / "original.onnx", {})
            details = _metadata(request, found)
            compressed = _export(request, found.model, Path(scratch) / ONNX, details)
        int8 = _quantised(request, found, compressed.path, watch)
        with watch.stage("measure"):
            files: dict[str, Path | bytes] = {
                "original": original.path, "compressed": compressed.path,
            }  # fmt: skip
            if int8 is not None:
                files["int8"] = int8.data
            settings, device = measure_settings(request, _FINAL), request.options.device
            # The profiler runs on this machine, and says nothing of another.
            local = device.name == LOCAL
            profiles = profile_models(files, settings, runs=_PROFILED) if local else {}
            for _ in range(_ATTEMPTS):
                latency = measure(files, settings, device=device)
                made = _Made(original, compressed, int8, latency, profiles)
                rows = _budget_rows(found, latency[made.deployed])
                if all(row.met for row in rows):
                    break
        summary = _summary(request, found, made, watch)
        _require_budgets(summary.budgets, latency[made.deployed])
        write_atomic(folder / ONNX, lambda path: shutil.copyfile(compressed.path, path))
    _place_int8(folder, int8)
    artefacts.save(folder, found.model, found.reading.space, architecture)
    summary.write(folder)
    write_report(summary, folder / FILE_NAME)
    return summary


def samples(calibration: Batches) -> list[Inputs]:
    """Inputs of the first calibration batches."""
    found = []
    for batch, _ in zip(calibration, range(_SAMPLES), strict=False):
        found.append(split(batch)[0])
    return found


def _export(
    request: Request, model: nn.Module, path: Path, details: Mapping[str, str]
) -> ExportReport:
    return export_onnx(
        model,
        request.example,
        path,
        metadata=details,
        samples=samples(request.calibration),
    )


def _metadata(request: Request, found: Found) -> dict[str, str]:
    return {
        "compressor.architecture": ",".join(map(str, found.candidate.architecture)),
        "compressor.budget": ", ".join(str(b.budget) for b in found.budgets),
        SHA256: tensors_hash(request.model.state_dict().items()),
        "compressor.version": version_of("layernas-compressor"),
    }


@dataclass(frozen=True)
class _Made:
    """What was exported and measured; latencies and profiles under the files' names."""

    original: ExportReport
    compressed: ExportReport
    int8: Int8 | None
    latency: Mapping[str, Latency]
    profiles: Mapping[str, Profile]

    @property
    def deployed(self) -> str:
        """The file that a budget of latency applies to."""
        return "compressed" if self.int8 is None else "int8"


def _quantised(request: Request, found: Found, source: Path, watch: Stopwatch) -> Int8 | None:
    """The network's quantised file with its score, where that was asked for."""
    if not request.options.int8:
        return None
    settings = measure_settings(request, _FINAL)
    with watch.stage("quantise"):
        made = quantised_network(source, request.calibration, settings)
        score = score_of_file(request.score, made, found.model, request.example, settings)
    return replace(made, score=score)


def _place_int8(folder: Path, int8: Int8 | None) -> None:
    """The quantised file into the run directory; without one, none of an earlier run is left."""
    if int8 is None:
        (folder / INT8).unlink(missing_ok=True)
        return
    data = int8.data
    write_atomic(folder / INT8, lambda path: path.write_bytes(data))


def _summary(request: Request, found: Found, made: _Made, watch: Stopwatch) -> RunSummary:
    reading, space = found.reading, found.reading.space
    chosen, original = found.candidate.architecture, space.original
    latency = made.latency
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
        budgets=_budget_rows(found, made.latency[made.deployed]),
        evaluations=len(found.search.scored),
        failed=len(found.search.failed),
        seconds=watch.seconds,
        stages=dict(watch.stages),
        frozen=space.frozen,
        sliced=found.library.sliced if request.options.refit else (),
        unranked=found.library.unranked,
        frontier=frontier(reading, found.search.frontier),
        scored=tuple(
            ScoredRow(i, float(c.costs[found.budgets[0].budget.unit]), c.score)
            for i, c in enumerate(found.search.scored)
        ),
        settings=_settings(request),
        versions={name: version_of(name) for name in _PACKAGES},
        machine={
            "processor": platform.processor() or platform.machine(),
            "system": platform.system(),
            "python": platform.python_version(),
            "torch threads": torch.get_num_threads(),
            "runtime threads": request.options.threads,
            "provider": request.options.provider,
        },
        profiles=made.profiles,
        command=request.options.command,
    )


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


def _budget_rows(found: Found, latency: Latency) -> tuple[BudgetRow, ...]:
    reading, architecture = found.reading, found.candidate.architecture
    exact = {"madds": reading.madds(architecture), "params": reading.params(architecture)}
    return tuple(_budget_row(budget, exact, latency) for budget in found.budgets)


def _budget_row(
    resolved: ResolvedBudget, exact: Mapping[str, float], latency: Latency
) -> BudgetRow:
    unit, limit, low, upper = resolved.budget.unit, resolved.high, resolved.low, None
    reached = exact.get(unit, latency.median_ms)
    if unit == "latency":
        upper = latency.high_ms
    if unit == "latency" and resolved.budget.relative:
        # A share of the original is promised against the original of the same measurement.
        original = latency.median_ms / latency.ratio
        limit, low = resolved.budget.limit(original), resolved.budget.least(original)
        upper = latency.ratio_high * original
    return BudgetRow(unit, str(resolved.budget), float(limit), float(reached), low, upper)


def _require_budgets(rows: Sequence[BudgetRow], spread: Latency) -> None:
    for row in rows:
        if not row.met:
            raise CheckError(
                f"the budget {row.requested} allows {row.allowed}, but the "
                f"exported network was measured at {format_cost(row.unit, row.reached)} "
                f"(95 % interval {spread.low_ms:.3g} to {spread.high_ms:.3g} ms); the machine may "
                "be busy: run the same command again, or ask for a few per cent less"
            )


def _settings(request: Request) -> dict[str, str | int | float | bool | None]:
    options = request.options
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
        "original_sha256": tensors_hash(request.model.state_dict().items()),
        **options.origin,
    }
