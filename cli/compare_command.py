"""`compressor compare`: several runs side by side."""

from __future__ import annotations

from pathlib import Path

import click

from cli import options
from cli.output import console, print_json, write_or_print
from cli.side_tables import side_parts
from compressor.errors import UsageError
from compressor.report.compare_page import render_compared, render_compared_markdown
from compressor.report.interactive import find_library
from compressor.report.side_by_side import read_runs, to_json

FORMATS = ("table", "html", "md", "json")


@click.command("compare")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="A table for this terminal, a page, Markdown, or one JSON object.",
)
@options.output
@options.talk
def command(runs: tuple[Path, ...], form: str, output: Path | None) -> None:
    """Put several runs side by side: what they came to, and in what they differ.

    RUN is a run directory; of a frontier or of several tasks, each of its networks is compared.
    """
    if form in ("table", "json") and output is not None:
        raise UsageError(f"--output is for --format html and md, but the format is {form}")
    found = read_runs(runs)
    if form == "json":
        print_json(to_json(found))
    elif form == "html":
        write_or_print(render_compared(found, find_library()), output)
    elif form == "md":
        write_or_print(render_compared_markdown(found), output)
    else:
        screen = console()
        for part in side_parts(found, screen.width):
            screen.print(part)
