"""`compressor report`: a run's report again, or the trace of its search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from cli import options
from cli.output import console, print_json, write_or_print
from cli.trace_tables import trace_parts
from compressor.errors import UsageError
from compressor.files import write_text
from compressor.plain import encode
from compressor.report import markdown, page
from compressor.report.interactive import find_library
from compressor.report.multitask import FILE_NAME as MULTITASK
from compressor.report.multitask import MultitaskSummary
from compressor.report.overview import FILE_NAME as OVERVIEW
from compressor.report.overview import Overview
from compressor.report.result import RunSummary
from compressor.trace.retrace import read_trace


@dataclass(frozen=True)
class _Form:
    """A form of report: the file's name, and the texts of what a folder may hold."""

    file: str
    run: Callable[[RunSummary], str]
    frontier: Callable[[Overview], str]
    tasks: Callable[[MultitaskSummary], str]


_FORMS: Mapping[str, _Form] = {
    "html": _Form(
        page.FILE_NAME,
        lambda summary: page.render(summary, find_library()),
        lambda overview: page.render_overview(overview, find_library()),
        page.render_multitask,
    ),
    "md": _Form(
        markdown.FILE_NAME,
        markdown.render_markdown,
        markdown.render_overview_markdown,
        markdown.render_multitask_markdown,
    ),
}


@click.command("report")
@options.run
@click.option(
    "--trace",
    is_flag=True,
    help="Print what the search did instead, layer by layer; made from the journal alone.",
)
@click.option("--layer", metavar="NAME", help="With --trace: one search layer in full.")
@click.option(
    "--search",
    type=click.IntRange(min=1),
    help="With --trace: which of the run's searches, where there are several (the last).",
)
@click.option("--json", "as_json", is_flag=True, help="With --trace: print one JSON object.")
@click.option(
    "--format",
    "form",
    type=click.Choice(list(_FORMS)),
    default="html",
    show_default=True,
    help="A page, or Markdown.",
)
@options.output
@options.talk
def command(
    run: Path,
    *,
    trace: bool,
    layer: str | None,
    search: int | None,
    as_json: bool,
    form: str,
    output: Path | None,
) -> None:
    """Write RUN/report.html or RUN/report.md from RUN/result.json, or tell what the search did."""
    if trace and output is not None:
        raise UsageError("--trace is printed, so it takes no --output; redirect it: > FILE")
    if trace:
        _print_trace(run, layer, search, as_json=as_json)
    elif layer is not None or search is not None or as_json:
        raise UsageError("--layer, --search and --json belong to --trace; add it")
    elif output is not None:
        _write_one(run, form, output)
    else:
        _write_reports(run, form)


def _write_reports(run: Path, form: str) -> None:
    """The report of a run, or all reports of one for several networks, each in its folder."""
    for folder in _within(run):
        _write_reports(folder, form)
    click.echo(str(write_text(run / _FORMS[form].file, _text(run, form))))


def _write_one(run: Path, form: str, output: Path) -> None:
    """The report of a run, or the table of one for several networks, where it was asked for."""
    write_or_print(_text(run, form), output)


def _within(run: Path) -> list[Path]:
    """The folders of a run for several networks; none for a run for one."""
    if (run / OVERVIEW).is_file():
        return [run / row.folder for row in Overview.read(run).rows]
    if (run / MULTITASK).is_file():
        return [run / row.name for row in MultitaskSummary.read(run).tasks]
    return []


def _text(run: Path, form: str) -> str:
    if (run / OVERVIEW).is_file():
        return _FORMS[form].frontier(Overview.read(run))
    if (run / MULTITASK).is_file():
        return _FORMS[form].tasks(MultitaskSummary.read(run))
    return _FORMS[form].run(RunSummary.read(run))


def _print_trace(run: Path, layer: str | None, search: int | None, *, as_json: bool) -> None:
    if as_json and layer is not None:
        raise UsageError("--layer narrows the text, but --json holds all layers; give one of them")
    found = read_trace(run, search)
    if as_json:
        print_json(encode(found))
        return
    screen = console()
    for part in trace_parts(found, layer):
        screen.print(part)
        screen.print()
