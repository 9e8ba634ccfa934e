"""`compressor report`: a run's report again."""

from __future__ import annotations

from pathlib import Path

import click

from cli import options
from compressor.overview import FILE_NAME as OVERVIEW
from compressor.overview import Overview
from compressor.report import FILE_NAME, write_overview, write_report
from compressor.result import RunSummary


@click.command("report")
@options.run
def command(run: Path) -> None:
    """Write RUN/report.html from RUN/result.json, or all reports of a frontier."""
    if (run / OVERVIEW).is_file():
        overview = Overview.read(run)
        for folder in [run / row.folder for row in overview.rows]:
            click.echo(str(write_report(RunSummary.read(folder), folder / FILE_NAME)))
        click.echo(str(write_overview(overview, run / FILE_NAME)))
        return
    click.echo(str(write_report(RunSummary.read(run), run / FILE_NAME)))
