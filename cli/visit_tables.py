"""Visits of the published strategy for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from cli.tables import RIGHT, number_text, options_text, text_table
from compressor.budget import format_cost
from compressor.trace.trace import Trace, Tried, Visit


def visits_table(trace: Trace) -> Table:
    """Every visit in numbers."""
    table = text_table(
        "Round", ("Layer", "left"), ("Tried", RIGHT), ("Scored", RIGHT), ("Known", RIGHT),
        ("Above", RIGHT), ("Below", RIGHT), ("Failed", RIGHT), ("Unscored", RIGHT),
        ("Beaten", RIGHT), ("Kept", RIGHT), ("Row", RIGHT), ("Buckets", RIGHT),
    )  # fmt: skip
    for visit in trace.visits:
        fates = Counter(tried.fate for tried in visit.tried)
        below = fates["below a limit"] + fates["outside the band"]
        scored = [t for t in visit.tried if t.evaluation is not None]
        known = sum(t.known for t in scored)
        table.add_row(
            str(visit.round + 1), Text(trace.layers[visit.layer].name),
            *map(str, (
                len(visit.tried), len(scored) - known, known, fates["above a limit"],
                below, fates["failed"], fates["not scored"],
                fates["beaten"], fates["kept"],
                sum(len(standing.members) for standing in visit.row), len(visit.row),
            )),
        )  # fmt: skip
    table.caption = (
        "Above, Below: dropped without a score, since nothing within the limits, or in the band, "
        "follows. Unscored: the evaluations were spent. Row: members of M_l after the visit"
    )
    return table


def visits_of(trace: Trace, place: int) -> Iterator[Table]:
    """What every visit of one layer tried, and the row after it."""
    for visit in trace.visits:
        if visit.layer == place:
            yield _tried(trace, visit)
            yield _standing(visit, trace.unit)


def _tried(trace: Trace, visit: Visit) -> Table:
    table = text_table(
        "Prefix", ("Cost", RIGHT), ("Bucket", RIGHT), ("Score", RIGHT), ("Evaluation", RIGHT),
        ("What became of it", "left"),
    )  # fmt: skip
    for tried in visit.tried:
        cost = "–" if tried.cost is None else format_cost(trace.unit, tried.cost)
        number = "–" if tried.evaluation is None else f"{tried.evaluation}{'*' * tried.known}"
        table.add_row(
            options_text(tried.prefix), cost, _bucket(tried.bucket), number_text(tried.score),
            number, _fate(tried),
        )  # fmt: skip
    table.title = f"Round {visit.round + 1}: tried"
    table.caption = "*: scored before, as the same network"
    return table


def _fate(tried: Tried) -> str:
    if tried.pushed_out is not None:
        return f"kept; {options_text(tried.pushed_out)} is beaten and leaves"
    words = {
        "beaten": "beaten in its bucket",
        "above a limit": "dropped: above a limit whatever follows",
        "below a limit": "dropped: below a limit whatever follows",
        "outside the band": "dropped: below the band whatever follows",
        "not scored": "dropped: the evaluations were spent",
    }
    return words.get(tried.fate, tried.fate)


def _standing(visit: Visit, unit: str) -> Table:
    table = text_table("Bucket", ("Cost", RIGHT), ("Members, the best first", "left"))
    for row in visit.row:
        members = ", ".join(
            f"{options_text(prefix)} ({number_text(score)})"
            for prefix, score in zip(row.members, row.scores, strict=True)
        )
        table.add_row(_bucket(row.bucket), format_cost(unit, row.cost), members)
    table.title = f"Round {visit.round + 1}: the row M_{visit.layer + 1} after it"
    return table


def _bucket(number: int | None) -> str:
    return "–" if number is None else str(number)
