"""`compressor report`: a run's report again."""

from __future__ import annotations

from pathlib import Path

import click

from cli import options
from compressor.report import FILE_NAME, write_report
from compressor.result import RunSummary


@click.command("report")
@options.run
def command(run: Path) -> None:
    """Write RUN/report.html from RUN/result.json."""
    click.echo(str(write_report(RunSummary.read(run), run / FILE_NAME)))
