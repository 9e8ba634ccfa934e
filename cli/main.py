"""The command `compressor`: which commands there are, and what errors look like.

Commands are imported when they are called, and torch when they run: it takes seconds, and neither
help nor a shell that completes a command may wait for it.
"""

from __future__ import annotations

import errno
import importlib
import traceback
from importlib import metadata
from typing import Any, NoReturn

import click

from cli import verbosity
from compressor.errors import CompressorError

_COMMANDS = {
    "inspect": "Show what the search can decide about a network, and what it cannot.",
    "compress": "Search a smaller network within a budget and export it as verified ONNX.",
    "compress-multitask": "Search one encoder architecture for the networks of several tasks.",
    "export": "Write a run's ONNX file again, with other options.",
    "measure": "Time ONNX files against each other in ONNX Runtime.",
    "report": "Write a run's report again, as a page or as Markdown.",
    "compare": "Put several runs side by side.",
    "completion": "Print what a shell needs to complete this command.",
}
_INTERRUPTED = 130  # as a shell counts a process that Ctrl-C ended


class Commands(click.Group):
    """Loads each command at its first use and turns errors into one message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of work."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports `cli.<name>_command`."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"cli.{cmd_name.replace('-', '_')}_command").command
        assert isinstance(command, click.Command)  # noqa: S101  (for the type checker)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; the only place where errors become messages."""
        try:
            return super().invoke(ctx)
        except CompressorError as error:
            _fail(ctx, f"error: {error}", error.exit_code)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output left: click knows how
                raise
            place = f": {error.filename}" if error.filename else ""
            _fail(ctx, f"error: the system refused: {error.strerror or error}{place}", 1)
        except KeyboardInterrupt:
            kept = (
                "; the journal in --out keeps every finished evaluation, and the same command "
                "resumes"
            )
            resumes = ctx.invoked_subcommand in ("compress", "compress-multitask")
            _fail(ctx, f"interrupted{kept if resumes else ''}", _INTERRUPTED)


def _fail(ctx: click.Context, message: str, code: int) -> NoReturn:
    if verbosity.level() == "debug":
        click.echo(traceback.format_exc(), err=True)
    click.echo(message, err=True)
    ctx.exit(code)


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        try:
            version = metadata.version("layernas-compressor")
        except metadata.PackageNotFoundError:
            version = "(from a source tree that is not installed)"
        click.echo(f"compressor {version}")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
@verbosity.options
def main() -> None:
    """Compress a trained PyTorch network to a budget and export verified ONNX.

    TARGET is path/to/file.py, package.module, torchvision:NAME, timm:NAME, hf:NAME_OR_DIR,
    FILE.pt2 or FILE.onnx.

    Results are on standard output, all else on standard error; NO_COLOR and COLUMNS are kept.

    Exit codes: 0 done, 1 the budget cannot be met or a check failed, 2 wrong use.
    """


if __name__ == "__main__":
    main()
