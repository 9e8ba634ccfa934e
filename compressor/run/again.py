"""The ONNX file of a finished run, written again from what the run left."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from compressor.deploy import artefacts
from compressor.deploy.export import ExportReport, export_onnx
from compressor.deploy.int8 import INT8, quantised_network
from compressor.device.measure import Settings
from compressor.errors import UsageError
from compressor.files import write_atomic
from compressor.network.data import Batches, Inputs
from compressor.progress import Event, Progress, silent
from compressor.report.result import RunSummary
from compressor.run.delivery import ONNX, SHA256, samples
from compressor.versions import version_of


def export_again(
    run: Path | str,
    model: nn.Module,
    example: Inputs,
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
    calibration: Batches = (),
    int8: bool = False,
    progress: Progress = silent,
) -> ExportReport:
    """Writes the ONNX file of a finished run again, verified like the first time.

    Args:
        run: the run directory.
        model: the original network as its code builds it.
        example: inputs `[N, …]`.
        opset: ONNX operator set; torch's own default without.
        dynamic_batch: whether the file takes any batch size.
        calibration: batches on which ONNX is compared with torch, beside random input.
        int8: whether the quantised file is written again as well, with ranges from `calibration`.
        progress: told before and after each file.

    Raises:
        UsageError: a quantised file was asked for with a static batch.
        CheckError: what was written does not compute the network.
        RunError: the run is unfinished or belongs to another model.
    """
    if int8 and not dynamic_batch:
        raise UsageError(
            "an int8 file is calibrated on batches of any size, but a static batch was asked for; "
            "leave one of the two out"
        )
    folder = Path(run)
    summary = RunSummary.read(folder)
    small = artefacts.load(folder, model)
    details = {
        "compressor.architecture": ",".join(map(str, summary.architecture)),
        "compressor.budget": ", ".join(row.requested for row in summary.budgets),
        SHA256: str(summary.settings.get("original_sha256", "")),
        "compressor.version": version_of("layernas-compressor"),
    }
    progress(Event("export", 0, 1, "writing and verifying ONNX"))
    report = export_onnx(
        small,
        example,
        folder / ONNX,
        opset=opset,
        dynamic_batch=dynamic_batch,
        metadata=details,
        samples=samples(calibration),
    )
    progress(Event("export", 1, 1, "ONNX and torch agree"))
    if int8:
        progress(Event("quantise", 0, 1, "ranges from the calibration data"))
        data = quantised_network(report.path, calibration, Settings()).data
        write_atomic(folder / INT8, lambda path: path.write_bytes(data))
        progress(Event("quantise", 1, 1))
    return report
