"""Where output goes: results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from cli import verbosity
from compressor.files import write_text

_FILE_WIDTH = 140  # columns where nobody looks at a terminal: names stay whole in a file


@contextlib.contextmanager
def stdout_for(*, as_json: bool) -> Iterator[None]:
    """With JSON asked for, whatever else is printed meanwhile goes to stderr.

    Targets are the user's code, and exporters print as well.
    """
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def print_json(value: Any) -> None:
    """Prints one JSON object on stdout."""
    click.echo(json.dumps(value, indent=1))


def write_or_print(text: str, path: Path | None) -> None:
    """Writes a text and prints where; on standard output where no file or `-` was asked for.

    Raises:
        RunError: the file cannot be written.
    """
    if path is None or str(path) == "-":
        click.echo(text, nl=not text.endswith("\n"))
    else:
        click.echo(str(write_text(path, text)))


def console(*, stderr: bool = False) -> Console:
    """A rich console; honours NO_COLOR and COLUMNS."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _FILE_WIDTH
    return made


def note(text: str) -> None:
    """Tells something on stderr; nothing for an empty text."""
    if text and verbosity.says("warning"):
        click.echo(f"note: {text}", err=True)
