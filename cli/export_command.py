"""`compressor export`: a run's ONNX file again, with other options."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from cli import options
from cli.output import console, note
from cli.progress import watching
from cli.resolve import resolve_target, takes_data
from compressor.errors import RunError
from compressor.report.result import RunSummary


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
@options.talk
def command(
    run: Path, target: str | None, opset: int | None, dynamic_batch: bool, int8: bool
) -> None:
    """Write the ONNX file of RUN again and verify it.

    The network is built by TARGET; without, by the run's own where that is torchvision:NAME or
    timm:NAME. A Python target is code, so a run cannot choose it.
    """
    # torch: help and completion go without
    from compressor.deploy.int8 import INT8  # noqa: PLC0415
    from compressor.run import pipeline  # noqa: PLC0415

    text, data = origin(RunSummary.read(run), run, target)
    found = resolve_target(text, data, needs_data=data is not None or not takes_data(text))
    note(found.note)
    with watching(console(stderr=True)) as progress:
        report = pipeline.export_run(
            run,
            found.build_model(),
            found.example_input,
            opset=opset,
            dynamic_batch=dynamic_batch,
            calibration=found.calibration,
            int8=int8,
            progress=progress,
        )
    click.echo(str(report.path))
    if int8:
        click.echo(str(run / INT8))


def origin(summary: RunSummary, run: Path, target: str | None) -> tuple[str, str | None]:
    """Target and data of a run; a given target comes before the run's own."""
    settings = summary.settings
    text, named = target, str(settings.get("target") or "")
    if text is None and not named:
        raise RunError(
            f"the run {str(run)!r} was started by a Python program and names no target; give it: "
            f"compressor export {run} TARGET"
        )
    if text is None and not _is_zoo(named):
        raise RunError(
            f"a Python target is executed, and a run may be someone else's: the run {str(run)!r} "
            f"names the target {named!r:.200}; if it is yours, give it: "
            f"{shlex.join(['compressor', 'export', str(run), named])[:400]}"
        )
    data = settings.get("data")
    chosen = text or named
    return chosen, str(data) if data and takes_data(chosen) else None


def _is_zoo(text: str) -> bool:
    """Whether a target is one of a library's own networks, which anybody may name."""
    return text.startswith(("torchvision:", "timm:"))
