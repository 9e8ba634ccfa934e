"""Tables for a terminal. Names come from the user's network: text, never markup."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from compressor.budget import format_cost
from compressor.device.profile import Key, NodeTime, Profile, grouped
from compressor.device.timing import NOISY, Latency
from compressor.report.comparison import comparison
from compressor.report.multitask import MultitaskSummary, joint_rows, task_table
from compressor.report.overview import Overview
from compressor.report.overview_table import overview_table
from compressor.report.result import BudgetRow, Figures
from compressor.report.words import promises

if TYPE_CHECKING:  # it brings torch, which `compressor measure` can do without
    from compressor.run.reading import Inspection

RIGHT = "right"
_OPTIONS = 12  # of a prefix
_KINDS, _PLACES = 12, 20  # rows of a profile
_SHOWN = 3  # of the modules or choices of one layer; the number of all follows


def closing_table(
    base: Figures, best: Figures, score: str = "", int8: Figures | None = None
) -> Table:
    """Original beside compressed, and beside its quantised form if there is one."""
    titles = ["Original", "Compressed", "Ratio", *(["int8", "Ratio"] if int8 else [])]
    table = text_table("", *((title, "right") for title in titles))
    for row in comparison(base, best, score, int8):
        cells = [row.base, row.best, row.ratio, row.int8, row.int8_ratio]
        table.add_row(row.what, *cells[: len(titles)])
    return table


def promises_table(rows: Sequence[BudgetRow]) -> Table:
    """What was promised beside what was counted or measured of the delivered file."""
    table = text_table("Budget", ("Promised", RIGHT), ("Measured", RIGHT), ("", "left"))
    for row in promises(tuple(rows)):
        cells = (row.budget, row.promised, row.measured, "met" if row.met else "missed")
        table.add_row(*map(Text, cells))
    return table


def frontier_table(overview: Overview) -> Table:
    """The networks of a frontier, as they close a run."""
    (first, *others), *rows = overview_table(overview)
    table = text_table(first, *((title, "right") for title in others[:-1]), (others[-1], "left"))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def tasks_table(summary: MultitaskSummary) -> Table:
    """Each task before and after, as it closes a run for several."""
    (first, second, *others), *rows = task_table(summary)
    table = text_table(first, (second, "left"), *((title, "right") for title in others))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def joint_table(summary: MultitaskSummary) -> Table:
    """The file with all networks, beside the originals in such a file."""
    name = "" if summary.joint is None else summary.joint.file
    table = text_table(name, *((title, RIGHT) for title in ("Original", "Compressed", "Ratio")))
    for row in joint_rows(summary):
        table.add_row(row.what, row.base, row.best, row.ratio)
    return table


def latency_table(found: Mapping[str, Latency], caption: str) -> Table:
    """Medians with their spread; ratios and verdicts are beside the first model."""
    memory = any(row.memory_bytes is not None for row in found.values())
    table = text_table(
        "Model", ("Median", RIGHT), ("95 %", RIGHT), ("p90", RIGHT), ("Ratio (95 %)", RIGHT),
        ("Verdict", "left"), *([("Peak memory", RIGHT)] * memory),
    )  # fmt: skip
    for place, (name, row) in enumerate(found.items()):
        table.add_row(
            Text(name),
            format_cost("latency", row.median_ms),
            f"{row.low_ms:.3g}–{row.high_ms:.3g}",
            f"{row.p90_ms:.3g}",
            f"{row.ratio:.3f} ({row.ratio_low:.3f}–{row.ratio_high:.3f})",
            row.verdict if place else "reference",
            *(["–" if row.memory_bytes is None else megabytes(row.memory_bytes)] * memory),
        )
    table.caption = Text(caption)
    return table


def noise_note(found: Mapping[str, Latency]) -> Iterator[Text]:
    """What the machine was too noisy to decide, if anything."""
    names = [name for name, row in found.items() if row.noisy or row.ratio_noisy]
    if names:
        yield Text(
            f"Too noisy to decide: an interval of {', '.join(names)} is wider than ±{NOISY:.0%}. "
            "Close other programs, allow more --seconds, or keep to some cores with --affinity."
        )


def megabytes(count: int) -> str:
    """Bytes as MB of a million."""
    return f"{count / 1e6:.1f} MB"


def profile_tables(profiles: Mapping[str, Profile]) -> Iterator[RenderableType]:
    """Time by kind of operator and by module, the slowest first; a group of columns a model."""
    yield _profile_table("Operator", profiles, lambda node: node.kind, _KINDS)
    yield _profile_table("Module", profiles, lambda node: node.place, _PLACES)
    for place, (name, profile) in enumerate(profiles.items(), 1):
        yield Text(f"[{place}] {name}: {format_cost('latency', profile.ms)} in all")
    runs = next(iter(profiles.values())).runs
    yield Text(f"ONNX Runtime's profiler, {runs} runs in turns")


def _profile_table(first: str, profiles: Mapping[str, Profile], key: Key, most: int) -> Table:
    titles = [
        (f"{title} [{place}]", RIGHT)
        for place in range(1, len(profiles) + 1)
        for title in ("Calls", "ms", "Share")
    ]
    table = text_table(first, *titles)
    for group, nodes in grouped(profiles, key, most):
        pairs = zip(nodes, profiles.values(), strict=True)
        table.add_row(Text(group), *(cell for n, p in pairs for cell in _profile_cells(n, p)))
    return table


def _profile_cells(node: NodeTime | None, profile: Profile) -> tuple[str, str, str]:
    if node is None:
        return "–", "–", "–"
    return f"{node.calls:g}", f"{node.ms:.3f}", f"{profile.share(node):.1%}"


def inspection_parts(found: Inspection) -> Iterator[RenderableType]:
    """Search layers, totals, what was not counted, what is frozen or cannot be refitted."""
    yield _layers(found)
    yield Text(
        f"{format_cost('madds', found.madds)} MAdds, {format_cost('params', found.params)} "
        f"parameters; the search can reach {found.share:.1%} of the MAdds and go down to "
        f"{format_cost('madds', found.least_madds)}"
    )
    if found.thop_madds is not None:
        yield Text(f"thop counts {format_cost('madds', found.thop_madds)} MAdds")
    if found.thop_note:
        yield Text(found.thop_note)
    if found.uncounted:
        calls = ", ".join(f"{name} ×{count}" for name, count in found.uncounted.items())
        yield Text(f"Not counted: {calls}")
    for title, parts in (
        ("Kept as it is", found.frozen),
        ("Cut without refitting", found.sliced),
    ):
        table = text_table(title, ("Why", "left"))
        for part in parts:
            table.add_row(Text(part.name), Text(part.reason))
        if parts:
            yield table


def _layers(found: Inspection) -> Table:
    table = text_table(
        "Search layer",
        ("Modules", "left"),
        ("Choices", "left"),
        ("MAdds", "right"),
        ("Removable", "right"),
    )
    for layer in found.layers:
        table.add_row(
            Text(layer.name),
            Text(_some(layer.modules)),
            Text(_ends(layer.choices)),
            format_cost("madds", layer.madds),
            format_cost("madds", layer.removable),
        )
    return table


def _some(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _ends(choices: tuple[str, ...]) -> str:
    """The first choices and the last; a wide layer has dozens."""
    if len(choices) <= _SHOWN + 1:
        return " | ".join(choices)
    return f"{' | '.join(choices[: _SHOWN - 1])} | … | {choices[-1]} ({len(choices)} in all)"


def text_table(first: str, *others: tuple[str, str]) -> Table:
    """An empty table: the first column's name, then names and sides of the others."""
    table = Table(
        box=None, header_style="bold", pad_edge=False, title_justify="left", caption_justify="left"
    )
    table.add_column(Text(first), overflow="fold")
    for name, justify in others:
        table.add_column(Text(name), justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def options_text(options: Sequence[int]) -> str:
    """Option numbers of an architecture or a prefix; of a long one the last, where it stands."""
    more = "… " * (len(options) > _OPTIONS)
    return more + " ".join(map(str, options[-_OPTIONS:]))


def number_text(value: float | None) -> str:
    """A score in four digits."""
    return "–" if value is None else f"{value:.4g}"
