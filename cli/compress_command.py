"""`compressor compress`: the whole chain."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import options
from cli.output import console, note, print_json, stdout_for
from cli.progress import watching
from cli.resolve import resolve_target
from cli.tables import closing_table, frontier_table, promises_table
from cli.target import Target
from compressor.budget import parse_goals
from compressor.device.devices import parse_device
from compressor.errors import UsageError
from compressor.names import KEEP, SCORES
from compressor.progress import Event
from compressor.report.overview import FILE_NAME as OVERVIEW
from compressor.report.overview import Overview
from compressor.report.page import FILE_NAME
from compressor.report.words import score_of

if TYPE_CHECKING:
    from torch import nn

_COUNT = click.IntRange(min=0)


@click.command("compress")
@options.target
@click.option(
    "--budget",
    multiple=True,
    metavar="UNIT=AMOUNT",
    help="Most it may cost: madds=50%, params=2M, latency=4ms; or a range: madds=40%..50%. "
    "Several hold together.",
)
@click.option(
    "--frontier",
    metavar="UNIT=AMOUNT,AMOUNT,…",
    help="One search, a network for each: madds=90%,80%,70%. All of them keep --budget too.",
)
@options.out
@click.option(
    "--evaluations",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Most networks that are scored.",
)
@click.option(
    "--finetune", type=_COUNT, default=0, show_default=True, help="Epochs for the found network."
)
@click.option(
    "--keep",
    type=click.Choice(KEEP),
    default="best",
    show_default=True,
    help="Epoch that is kept; last where the validation data is what the original learnt from.",
)
@click.option(
    "--score",
    type=click.Choice(SCORES),
    help="What judges networks; agreement with the original needs no labels. Without: the "
    "target's score(model), else top1 where there are labels and agreement where not.",
)
@click.option(
    "--score-epochs",
    type=_COUNT,
    default=0,
    show_default=True,
    help="Epochs for each network before it is scored.",
)
@options.seed
@options.refit
@options.ranking
@click.option(
    "--int8",
    is_flag=True,
    help="Also write the network quantised to 8 bits; a latency budget is then that file's.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that score networks; more than one needs the extra ray.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Networks asked for at once; what is found depends on it, not on --workers.  [default: "
    "as many as workers]",
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Ray cluster that the workers run on: auto, HOST:PORT or ray://HOST:PORT. Without: here.",
)
@click.option(
    "--worker-gpus",
    type=click.FloatRange(min=0),
    metavar="GPUS",
    help="GPUs of each worker, or a share of one.  [default: 1 where the network is on a GPU]",
)
@options.data
@options.adapter
@options.drop_blocks
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
    data: str | None,
    score: str | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Search a smaller network within a budget and export it as verified ONNX.

    TARGET is path/to/file.py, package.module, torchvision:NAME, timm:NAME, hf:NAME_OR_DIR,
    FILE.pt2 or FILE.onnx. A Python file or module defines build_model(), example_input() and
    calibration_data(), and may define validation_data(), training_data() and score(model); all
    others take their data from --data.

    Ctrl-C loses nothing: the same command resumes where it stopped.
    """
    parse_goals(budget, frontier)  # a mistake here is told before anything is loaded
    parse_device(how["device"])
    shell = command_line(ctx)
    with stdout_for(as_json=as_json), watching(console(stderr=True)) as progress:
        progress(Event("load", 0, 2, target))
        found = resolve_target(target, data)
        note(found.note)
        judging = _judging(found, score)
        progress(Event("load", 1, 2, "building the model"))
        from compressor.run import pipeline  # noqa: PLC0415  (torch: help and completion go without)

        model = found.build_model()
        progress(Event("load", 2, 2))
        result = pipeline.compress(
            model,
            found.example_input,
            budget=budget,
            frontier=frontier,
            calibration=found.calibration,
            out=out,
            validation=found.validation,
            training=found.training,
            score=judging,
            **how,
            command=shell,
            origin={
                "target": anchored(target),
                "data": data and anchored(data),
                "folder": str(Path.cwd()),
            },
            progress=progress,
        )
    if result.points:
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
        return
    if as_json:
        print_json({"run": str(out), **result.summary.to_json()})
        return
    summary = result.summary
    screen = console()
    screen.print(closing_table(summary.base, summary.best, score_of(summary), summary.int8))
    screen.print()
    screen.print(promises_table(summary.budgets))
    screen.print()
    files = [result.onnx_path, result.int8_path, out / FILE_NAME]
    click.echo("\n".join(str(path) for path in files if path is not None))


def _judging(found: Target, score: str | None) -> Callable[[nn.Module], float] | str | None:
    """What judges: the target's own function or what was asked for, never both."""
    if found.score is not None and score is not None:
        raise UsageError(
            f"one score judges a run, but {found.name!r} defines score(model) and --score {score} "
            "was given; leave --score out, or drop score(model) from the target"
        )
    return found.score or score


def anchored(text: str) -> str:
    """A target or data with its path made absolute, to be found from another directory."""
    kind, colon, folder = text.partition(":")
    if kind in ("imagefolder", "tensors"):
        return f"{kind}{colon}{Path(folder).expanduser().resolve()}"
    return str(Path(text).resolve()) if Path(text).is_file() else text


def command_line(ctx: click.Context) -> str:
    """The shell line that repeats this call: what differs from the defaults."""
    words = ["compressor", str(ctx.command.name), str(ctx.params["target"])]
    for option in ctx.command.params:
        value = ctx.params.get(option.name or "")
        if not isinstance(option, click.Option) or value is None:
            continue
        if option.is_flag:
            # --refit/--no-refit is on unless said otherwise, --json is off
            said = option.secondary_opts[:1] if option.secondary_opts else option.opts[:1]
            words += said if value is not bool(option.secondary_opts) else []
            continue
        if option.required or value != option.default:
            for item in value if isinstance(value, tuple) else (value,):
                words += [option.opts[0], str(item)]
    return shlex.join(words)
