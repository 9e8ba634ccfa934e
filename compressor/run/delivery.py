"""From the network that was found to files that were proved: export, measure, report."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from compressor.budget import format_cost
from compressor.deploy import artefacts
from compressor.deploy.export import ExportReport, export_onnx
from compressor.deploy.int8 import INT8, Int8, quantised_network, score_of_file
from compressor.device.job import Device, Job, Readings, Settings
from compressor.device.local import LOCAL
from compressor.device.measure import measure
from compressor.device.profiling import profile_models
from compressor.device.timing import Latency, Schedule
from compressor.errors import CheckError
from compressor.files import NETWORK, write_atomic
from compressor.network.data import Batches, Inputs, split, tensors_hash
from compressor.progress import Event, Progress, silent
from compressor.report.page import FILE_NAME, write_report
from compressor.report.result import BudgetRow, RunSummary
from compressor.run.request import Request, Stopwatch
from compressor.run.summary import Found, Made, budget_rows, summarise
from compressor.versions import version_of

ONNX = NETWORK
SHA256 = "compressor.original_sha256"
_SAMPLES = 2  # calibration batches on which ONNX is compared with torch
_PROFILED = 20  # runs of each file
_ATTEMPTS = 3  # measurements of a network that misses its budget: other programs only slow it down
_FINAL = Schedule(rounds=20, seconds=8.0)


def measure_settings(request: Request, schedule: Schedule) -> Settings:
    """How this run measures latency."""
    return Settings(request.options.threads, request.options.provider, schedule)


def final_settings(request: Request) -> Settings:
    """How this run measures what it delivers."""
    return measure_settings(request, _FINAL)


def deliver(
    request: Request,
    found: Found,
    folder: Path,
    watch: Stopwatch,
    progress: Progress = silent,
    original: ExportReport | None = None,
) -> RunSummary:
    """Writes every file of a finished run, once everything it promises was checked.

    `original` is what `export_original` made, where that was asked before.

    Raises:
        CheckError: ONNX and torch or the quantised file disagree, or the measured latency is above
            the budget.
        ExportError: the network cannot be exported or quantised.
        DeviceError: the device on which it is measured fails.
        RunError: the directory cannot be written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if original is None:
            place = Path(scratch) / "original.onnx"
            original = export_original(request, place, watch, progress)
        with watch.stage("export"):
            progress(Event("export", 1, 2, "writing and verifying ONNX"))
            details = _metadata(request, found)
            compressed = _export(request, found.model, Path(scratch) / ONNX, details)
            progress(Event("export", 2, 2, "ONNX and torch agree"))
        int8 = _quantised(request, found, compressed.path, watch, progress)
        with watch.stage("measure"):
            made = _measured(request, found, (original, compressed, int8), progress)
        summary = summarise(request, found, made, watch)
        require_budgets(summary.budgets, made.latency[made.deployed])
        write_atomic(folder / ONNX, lambda path: shutil.copyfile(compressed.path, path))
    _place_int8(folder, int8)
    artefacts.save(folder, found.model, found.reading.space, found.candidate.architecture)
    summary.write(folder)
    write_report(summary, folder / FILE_NAME)
    return summary


def export_original(
    request: Request, path: Path, watch: Stopwatch, progress: Progress = silent
) -> ExportReport:
    """Writes the original network's ONNX file, which the compressed one's is compared with.

    Raises:
        ExportError: it cannot be exported, or the file cannot be written.
        CheckError: ONNX and torch disagree.
    """
    with watch.stage("export"):
        progress(Event("export", 0, 2, "the original, to compare with"))
        return _export(request, request.model, path, {})


def _measured(
    request: Request,
    found: Found,
    exported: tuple[ExportReport, ExportReport, Int8 | None],
    progress: Progress,
) -> Made:
    """The files timed in turns, again where other programs may have kept one above its budget."""
    original, compressed, int8 = exported
    files: dict[str, Path | bytes] = {"original": original.path, "compressed": compressed.path}
    if int8 is not None:
        files["int8"] = int8.data
    deployed = list(files)[-1]
    settings, device = final_settings(request), _Heard(request.options.device)
    # The profiler runs on this machine, and says nothing of another.
    profiles = {}
    if device.name == LOCAL:
        progress(Event("profile", 0, None, "where the time goes"))
        profiles = profile_models(files, settings, runs=_PROFILED)
        progress(Event("profile", 1, 1, "where the time goes"))
    latency = timed(
        files,
        settings,
        device,
        progress,
        lambda latency: all(row.met for row in budget_rows(found, latency[deployed])),
    )
    return Made(original, compressed, int8, latency, profiles, device.processor, device.runtime)


def timed(
    files: Mapping[str, Path | bytes],
    settings: Settings,
    device: Device,
    progress: Progress,
    keeps: Callable[[Mapping[str, Latency]], bool] = lambda _: True,
) -> Mapping[str, Latency]:
    """The files timed in turns; again, a few times, where a promise seems not to be kept.

    Other programs make a network slower, and none makes it faster.
    """
    for attempt in range(_ATTEMPTS):
        again = f"attempt {attempt + 1}: it was above its budget" if attempt else device.name
        progress(Event("measure", 0, None, again, seconds=settings.schedule.seconds))
        latency = measure(files, settings, device=device)
        if keeps(latency):
            break
    last = format_cost("latency", list(latency.values())[-1].median_ms)
    progress(Event("measure", 1, 1, f"{last} on {device.name}"))
    return latency


class _Heard:
    """A device, and what it told of itself when it last measured."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.processor = self.runtime = ""

    @property
    def name(self) -> str:
        return self._device.name

    def check(self, settings: Settings) -> None:
        self._device.check(settings)

    def take(self, job: Job) -> Readings:
        taken = self._device.take(job)
        self.processor, self.runtime = taken.processor, taken.runtime
        return taken


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


def _quantised(
    request: Request, found: Found, source: Path, watch: Stopwatch, progress: Progress
) -> Int8 | None:
    """The network's quantised file with its score, where that was asked for."""
    if not request.options.int8:
        return None
    settings = final_settings(request)
    with watch.stage("quantise"):
        progress(Event("quantise", 0, 2, "ranges from the calibration data"))
        made = quantised_network(source, request.calibration, settings)
        progress(Event("quantise", 1, 2, "scoring the quantised file"))
        score = score_of_file(request.score, made, found.model, request.example, settings)
        progress(Event("quantise", 2, 2, "" if score is None else f"score {score:.4f}"))
    return replace(made, score=score)


def require_budgets(rows: Sequence[BudgetRow], spread: Latency) -> None:
    """Raises `CheckError` unless all promises are kept; says what was measured."""
    for row in rows:
        if not row.met:
            raise CheckError(
                f"the budget {row.requested} allows {row.allowed}, but the "
                f"exported network was measured at {format_cost(row.unit, row.reached)} "
                f"(95 % interval {spread.low_ms:.3g} to {spread.high_ms:.3g} ms); the machine may "
                "be busy: run the same command again, or ask for a few per cent less"
            )


def _place_int8(folder: Path, int8: Int8 | None) -> None:
    """The quantised file into the run directory; without one, none of an earlier run is left."""
    if int8 is None:
        (folder / INT8).unlink(missing_ok=True)
        return
    data = int8.data
    write_atomic(folder / INT8, lambda path: path.write_bytes(data))
