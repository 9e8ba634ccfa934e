"""`compressor export`: a run's ONNX file again, with other options."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cli import options
from cli.output import console, note
from cli.progress import watching
from cli.resolve import resolve_target, takes_data
from compressor.errors import RunError
from compressor.report.multitask import FILE_NAME as MULTITASK
from compressor.report.multitask import MultitaskSummary
from compressor.report.result import RunSummary, Setting


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

    Of a run for several tasks all files are written, of RUN/TASK the one of that task.

    The network is built by TARGET; without, by the run's own where that is torchvision:NAME or
    timm:NAME. A Python target is code, so a run cannot choose it.
    """
    from compressor.deploy.int8 import INT8  # noqa: PLC0415  (torch: help and completion go without)

    several = (run / MULTITASK).is_file()
    summary = MultitaskSummary.read(run) if several else RunSummary.read(run)
    text, data = origin(summary.settings, run, target)
    how: dict[str, Any] = {"opset": opset, "dynamic_batch": dynamic_batch, "int8": int8}
    if isinstance(summary, MultitaskSummary) or "task" in summary.settings:
        written = _tasks(run, summary, text, how)
    else:
        written = _network(run, text, data, how)
    for path in written:
        click.echo(str(path))
        if int8 and path.with_name(INT8).is_file():
            click.echo(str(path.with_name(INT8)))


def _network(run: Path, text: str, data: str | None, how: dict[str, Any]) -> list[Path]:
    from compressor.run import pipeline  # noqa: PLC0415

    found = resolve_target(text, data, needs_data=data is not None or not takes_data(text))
    note(found.note)
    with watching(console(stderr=True)) as progress:
        model, example = found.build_model(), found.example_input
        report = pipeline.export_run(
            run, model, example, calibration=found.calibration, progress=progress, **how
        )
    return [report.path]


def _tasks(
    run: Path, summary: RunSummary | MultitaskSummary, text: str, how: dict[str, Any]
) -> list[Path]:
    """One task's file, or those of all tasks."""
    from cli.python_target import python_checked_tasks  # noqa: PLC0415
    from compressor.multitask import again  # noqa: PLC0415

    tasks = python_checked_tasks(text)
    with watching(console(stderr=True)) as progress:
        if isinstance(summary, MultitaskSummary):
            return list(again.export_tasks_again(run, tasks, progress=progress, **how))
        name = str(summary.settings["task"])
        return [again.export_task_again(run, tasks, name, progress=progress, **how)]


def origin(
    settings: Mapping[str, Setting], run: Path, target: str | None
) -> tuple[str, str | None]:
    """Target and data of a run; a given target comes before the run's own."""
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
