"""Pages of the site that are made while it is built, from what the repository holds anyway.

A hook of MkDocs (`hooks:` in mkdocs.yml): CHANGELOG.md and CONTRIBUTING.md, whose links are written
for the repository, and the command line's own help. A link from a page to the README leads to the
first page, which says the same.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.main import main

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
MOVED = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
COLUMNS = 76  # what a page shows without scrolling


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are no files of docs/."""
    from mkdocs.structure.files import File  # noqa: PLC0415  (the tests read pages without it)

    for name, text in generated().items():
        files.append(File.generated(config, name, content=text))
    return files


def generated() -> dict[str, str]:
    """Name of a page of the site to its Markdown."""
    pages = {
        page: relinked((ROOT / file).read_text(encoding="utf-8")) for file, page in MOVED.items()
    }
    return {**pages, "cli.md": command_line()}


def relinked(text: str) -> str:
    """Links as they are in the root of the repository, made links from within docs/."""
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\]\(([A-Z]+\.md)", lambda m: f"]({MOVED.get(m[1], m[1])}", text)


def command_line() -> str:
    """What `--help` prints of every command."""
    with click.Context(main, info_name="compressor") as context:
        parts = [
            f"## `compressor {name}`\n\n```text\n{_help(name, context)}\n```\n"
            for name in main.list_commands(context)
        ]
    head = "# Command line\n\nWhat `compressor COMMAND --help` prints.\n"
    return "\n".join((head, *parts))


def _help(name: str, parent: click.Context) -> str:
    command = main.get_command(parent, name)
    if command is None:
        raise LookupError(name)
    with click.Context(
        command, info_name=name, parent=parent, terminal_width=COLUMNS, max_content_width=COLUMNS
    ) as context:
        return command.get_help(context)
