"""`compressor inspect`: what the search can decide about a network, and what it cannot."""

from __future__ import annotations

import click

from cli import options
from cli.output import console, note, print_json, stdout_for
from cli.progress import watching
from cli.resolve import resolve_target
from cli.tables import inspection_parts
from compressor.progress import Event


@click.command("inspect")
@options.target
@options.data
@options.adapter
@options.drop_blocks
@options.as_json
@options.talk
def command(target: str, data: str | None, adapter: str, drop_blocks: bool, as_json: bool) -> None:
    """Show the search layers of TARGET, what is frozen and why, and what was not counted.

    Needs build_model() and example_input() alone; no data is read.
    """
    with stdout_for(as_json=as_json), watching(console(stderr=True)) as progress:
        progress(Event("load", 0, 2, target))
        found = resolve_target(target, data, needs_data=False)
        note(found.note)
        progress(Event("load", 1, 2, "building the model"))
        from compressor.run import pipeline  # noqa: PLC0415  (torch: help and completion go without)

        model = found.build_model()
        progress(Event("load", 2, 2))
        inspection = pipeline.inspect(
            model, found.example_input, adapter=adapter, drop_blocks=drop_blocks, progress=progress
        )
    if as_json:
        print_json(inspection.to_json())
        return
    shown = console()
    for part in inspection_parts(inspection):
        shown.print(part)
