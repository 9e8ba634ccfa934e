"""How much a command says on standard error: `--quiet` and `--log-level`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import click

LEVELS = ("debug", "info", "warning", "error")
_KEY = "cli.verbosity.level"  # in click's `meta`, which a command shares with its group
_Function = TypeVar("_Function", bound=Callable[..., Any])


def level() -> str:
    """What was asked for; "info" where nothing was."""
    context = click.get_current_context(silent=True)
    return str(context.meta.get(_KEY, "info")) if context else "info"


def says(what: str) -> bool:
    """Whether messages of a level are to be printed."""
    return LEVELS.index(what) >= LEVELS.index(level())


def options(function: _Function) -> _Function:
    """Adds both options to a command; they are no parameters of it."""
    quiet = click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_quieten,
        help="Print results and errors only; the same as --log-level error.",
    )
    log_level = click.option(
        "--log-level",
        type=click.Choice(LEVELS),
        expose_value=False,
        callback=_choose,
        help="What to say on standard error: error, warning (notes too), info (progress too; what "
        "happens without), debug (every step with its time, log messages of libraries, and where "
        "an error came from).",
    )
    return quiet(log_level(function))


def _quieten(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        _set(context, "error")


def _choose(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        _set(context, value)


def _set(context: click.Context, value: str) -> None:
    said = context.meta.get(_KEY)
    if said not in (None, value):
        raise click.UsageError(f"--quiet and --log-level say different things: {said} and {value}.")
    context.meta[_KEY] = value
    handler = _ClickHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    before, handlers = root.level, list(root.handlers)
    root.handlers[:] = [handler]
    root.setLevel(max(logging.getLevelName(value.upper()), _LIBRARIES[value]))
    heard = warnings.catch_warnings()
    heard.__enter__()
    if value == "error":
        warnings.simplefilter("ignore")

    def restore() -> None:
        heard.__exit__(None, None, None)
        root.setLevel(before)
        root.handlers[:] = handlers

    context.find_root().call_on_close(restore)


# Libraries say much on "info"; that is for who asks for everything.
_LIBRARIES = {
    "debug": logging.DEBUG, "info": logging.WARNING,
    "warning": logging.WARNING, "error": logging.ERROR,
}  # fmt: skip


class _ClickHandler(logging.Handler):
    """Writes to standard error as it is at that moment, below a live display too."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one line."""
        click.echo(self.format(record), err=True)
