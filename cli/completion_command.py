"""`compressor completion`: what a shell needs to complete the command."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")
_NAME, _VARIABLE = "compressor", "_COMPRESSOR_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print what SHELL runs to complete commands, options and their values.

    \b
    bash:  compressor completion bash > ~/.local/share/bash-completion/completions/compressor
    zsh:   compressor completion zsh > "${fpath[1]}/_compressor"
    fish:  compressor completion fish > ~/.config/fish/completions/compressor.fish
    """  # noqa: D301  (the backspace keeps click from filling these lines)
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101  (click brings all three)
    click.echo(found(context.find_root().command, {}, _NAME, _VARIABLE).source())
