"""`compressor compress-multitask`: one encoder architecture for several tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import options
from cli.compress_command import anchored, command_line
from cli.output import console, print_json, stdout_for
from cli.progress import watching
from cli.tables import frontier_table, joint_table, promises_table, tasks_table
from compressor.budget import parse_goals
from compressor.device.devices import parse_device
from compressor.names import KEEP, TRANSFERS
from compressor.progress import Event
from compressor.report.multitask import FILE_NAME as SUMMARY
from compressor.report.multitask import learning_text
from compressor.report.overview import FILE_NAME as OVERVIEW
from compressor.report.overview import Overview
from compressor.report.page import FILE_NAME

if TYPE_CHECKING:  # torch: help goes without
    from compressor.multitask.pipeline import MultitaskResult

_COUNT = click.IntRange(min=0)


@click.command("compress-multitask")
@options.target
@click.option(
    "--budget",
    multiple=True,
    metavar="UNIT=AMOUNT",
    help="Most it may cost: madds=50%, params=2M, latency=60%; or a range: madds=40%..50%. "
    "Several hold together.",
)
@click.option(
    "--frontier",
    metavar="UNIT=AMOUNT,AMOUNT,…",
    help="One search, an architecture for each: madds=90%,80%,70%. All of them keep --budget too.",
)
@click.option(
    "--per",
    type=click.Choice(["encoder", "all"]),
    default="encoder",
    show_default=True,
    help="What the budget limits: one encoder, or all networks together with their heads. A "
    "latency per encoder is kept by each task's file, that of all by the joint one.",
)
@click.option(
    "--joint",
    is_flag=True,
    help="Also write all networks as one ONNX file that reads the input once.",
)
@options.out
@click.option(
    "--evaluations",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Most architectures that are scored, each on all tasks.",
)
@click.option(
    "--finetune", type=_COUNT, default=0, show_default=True, help="Epochs for each task's network."
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Rounds over the tasks, among which these epochs are divided.",
)
@click.option(
    "--transfer",
    type=click.Choice(TRANSFERS),
    default="none",
    show_default=True,
    help="What passes from one task's encoder to the next while they learn: which inputs are "
    "alike, or its features.",
)
@click.option(
    "--transfer-weight",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Of the transfer term beside the task's own loss; 0 turns it off.",
)
@click.option(
    "--quantile",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    default=0.25,
    show_default=True,
    help="With --transfer matching: the share of pairs of inputs that count as alike.",
)
@click.option(
    "--keep",
    type=click.Choice(KEEP),
    default="best",
    show_default=True,
    help="Epoch that is kept; last where the validation data is what the originals learnt from.",
)
@options.seed
@options.refit
@options.ranking
@options.adapter
@options.threads
@options.provider
@options.device
@options.latency_folder
@options.as_json
@options.talk
@click.pass_context
def command(
    ctx: click.Context,
    /,
    target: str,
    budget: tuple[str, ...],
    frontier: str | None,
    out: Path,
    as_json: bool,
    **how: Any,
) -> None:
    """Search one encoder architecture for the networks of several tasks.

    TARGET is path/to/file.py or package.module and defines tasks(), which returns a list of
    compressor.Task. Every task gets a verified ONNX file with weights and a head of its own; their
    encoders are one graph.

    Ctrl-C loses nothing: the same command resumes where it stopped.
    """
    parse_goals(budget, frontier)  # a mistake here is told before anything is loaded
    parse_device(how["device"])
    shell = command_line(ctx)
    with stdout_for(as_json=as_json), watching(console(stderr=True)) as progress:
        progress(Event("load", 0, 1, target))
        from cli.python_target import python_tasks  # noqa: PLC0415  (torch: help goes without)
        from compressor.multitask import pipeline  # noqa: PLC0415

        tasks = python_tasks(target)
        progress(Event("load", 1, 1))
        result = pipeline.compress_multitask(
            tasks,
            budget=budget,
            frontier=frontier,
            out=out,
            **how,
            command=shell,
            origin={"target": anchored(target), "folder": str(Path.cwd())},
            progress=progress,
        )
    if result.points:
        _tell_points(result, out, as_json=as_json)
        return
    if as_json:
        print_json({"run": str(out), **result.summary.to_json()})
        return
    screen = console()
    screen.print(tasks_table(result.summary))
    screen.print()
    screen.print(promises_table(result.summary.budgets))
    screen.print()
    if result.summary.joint is not None:
        screen.print(joint_table(result.summary))
        screen.print()
    if result.summary.learning:
        click.echo(learning_text(result.summary.learning) + "\n")
    files = [*(task.onnx_path for task in result.tasks), result.joint_path, out / SUMMARY]
    click.echo("\n".join(str(path) for path in (*files, out / FILE_NAME) if path is not None))


def _tell_points(result: MultitaskResult, out: Path, *, as_json: bool) -> None:
    """What a frontier came to."""
    overview = Overview.read(out)
    if as_json:
        print_json({"run": str(out), **overview.to_json()})
        return
    screen = console()
    screen.print(frontier_table(overview))
    screen.print()
    rows = [row for point in result.points for row in point.summary.budgets]
    screen.print(promises_table(list(dict.fromkeys(rows))))
    screen.print()
    click.echo(f"{out / OVERVIEW}\n{out / FILE_NAME}")
