"""Several runs side by side, for a terminal of any width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from cli.tables import RIGHT, text_table
from compressor.report.side_by_side import Run, groups, notes

_LABEL, _CELL = 18, 20  # columns that a label and a run need at least


def side_parts(runs: Sequence[Run], width: int) -> Iterator[RenderableType]:
    """As many runs beside each other as have room, the others below them; then the notes."""
    room = max(1, (width - _LABEL) // _CELL)
    found = groups(runs)
    for start in range(0, len(runs), room):
        part = slice(start, start + room)
        table = text_table("", *((run.name, RIGHT) for run in runs[part]))
        for group in found:
            if group.title:
                table.add_section()
                table.add_row(Text(group.title, style="bold"))
            for label, cells in group.rows:
                table.add_row(Text(label), *(Text(cell) for cell in cells[part]))
        yield table
        yield Text("")
    for note in notes(runs):
        yield Text(f"Note: {note}")
