"""`compressor export`: a run's ONNX file again, with other options."""

from __future__ import annotations

from pathlib import Path

import click

from cli import options
from cli.output import note
from cli.resolve import resolve_target
from compressor.deploy.int8 import INT8
from compressor.errors import RunError
from compressor.report.result import RunSummary
from compressor.run import pipeline


@click.command("export")
@options.run
@click.argument("target", required=False)
@click.option("--opset", type=click.IntRange(min=1), help="ONNX operator set; torch's own without.")
@click.option(
    "--dynamic-batch/--static-batch",
    default=True,
    show_default=True,
    help="Whether the file takes any batch size, or the example input's alone.",
)
@click.option("--int8", is_flag=True, help="Write the quantised file again as well.")
def command(
    run: Path, target: str | None, opset: int | None, dynamic_batch: bool, int8: bool
) -> None:
    """Write the ONNX file of RUN again and verify it.

    The network is built by the run's own target; give TARGET where that has moved.
    """
    text, data = origin(RunSummary.read(run), run, target)
    found = resolve_target(text, data, needs_data=data is not None or not _is_zoo(text))
    note(found.note)
    report = pipeline.export_run(
        run,
        found.build_model(),
        found.example_input,
        opset=opset,
        dynamic_batch=dynamic_batch,
        calibration=found.calibration,
        int8=int8,
    )
    click.echo(str(report.path))
    if int8:
        click.echo(str(run / INT8))


def origin(summary: RunSummary, run: Path, target: str | None) -> tuple[str, str | None]:
    """Target and data of a run; a given target comes before the run's own."""
    settings = summary.settings
    text = target or settings.get("target")
    if not text:
        raise RunError(
            f"the run {str(run)!r} was started by a Python program and names no target; give it: "
            f"compressor export {run} TARGET"
        )
    data = settings.get("data")
    return str(text), str(data) if data and _is_zoo(str(text)) else None


def _is_zoo(text: str) -> bool:
    return text.startswith(("torchvision:", "timm:"))
