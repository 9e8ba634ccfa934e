"""`compressor report`: a run's report again, or the trace of its search."""

from __future__ import annotations

from pathlib import Path

import click

from cli import options
from cli.output import console, print_json
from cli.trace_tables import trace_parts
from compressor.errors import UsageError
from compressor.plain import encode
from compressor.report.overview import FILE_NAME as OVERVIEW
from compressor.report.overview import Overview
from compressor.report.page import FILE_NAME, write_overview, write_report
from compressor.report.result import RunSummary
from compressor.trace.retrace import read_trace


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
def command(
    run: Path, *, trace: bool, layer: str | None, search: int | None, as_json: bool
) -> None:
    """Write RUN/report.html from RUN/result.json, or tell what the search did."""
    if trace:
        _print_trace(run, layer, search, as_json=as_json)
    elif layer is not None or search is not None or as_json:
        raise UsageError("--layer, --search and --json belong to --trace; add it")
    else:
        _write_reports(run)


def _write_reports(run: Path) -> None:
    """The report of a run, or all reports of a frontier."""
    if not (run / OVERVIEW).is_file():
        click.echo(str(write_report(RunSummary.read(run), run / FILE_NAME)))
        return
    overview = Overview.read(run)
    for folder in [run / row.folder for row in overview.rows]:
        click.echo(str(write_report(RunSummary.read(folder), folder / FILE_NAME)))
    click.echo(str(write_overview(overview, run / FILE_NAME)))


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
