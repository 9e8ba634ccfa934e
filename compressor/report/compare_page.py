"""Several runs side by side as a page and as Markdown. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from compressor.budget import UNITS, format_cost
from compressor.report.charts import Axes, Point, scatter
from compressor.report.comparison import score_text
from compressor.report.interactive import Library
from compressor.report.markdown import plain, table
from compressor.report.page import fill
from compressor.report.plots import Figure, networks_figure
from compressor.report.result import Figures
from compressor.report.run_charts import cost_of
from compressor.report.side_by_side import Run, groups, layer_rows, notes
from compressor.report.words import command_of

_TITLE = "Runs side by side"
_UNITS = ("madds", "latency")


def render_compared(runs: Sequence[Run], library: Library | None = None) -> str:
    """One HTML page; see `compressor.report.page.render`."""
    units = [unit for unit in _UNITS if _drawn(runs, unit)]
    figures: dict[str, Figure] = {
        unit: networks_figure(_originals(runs), _networks(runs), unit, line=False) for unit in units
    }
    return fill(
        "compare.html.j2",
        figures,
        library,
        title=_TITLE,
        names=[run.name for run in runs],
        groups=groups(runs),
        layers=layer_rows(runs),
        notes=notes(runs),
        charts=[(unit, UNITS[unit], _chart(runs, unit)) for unit in units],
        commands=[(run.name, command_of(run.summary)) for run in runs if run.summary.command],
    )


def render_compared_markdown(runs: Sequence[Run]) -> str:
    """The same as Markdown, without charts."""
    names = [run.name for run in runs]
    parts = [f"# {_TITLE}", *(plain(note) for note in notes(runs))]
    for group in groups(runs):
        parts += [f"## {group.title}"] * bool(group.title)
        parts.append(table(["", *names], [(label, *cells) for label, cells in group.rows]))
    layers = layer_rows(runs)
    if layers:
        parts.append("## What each layer keeps")
        rows = [(label, *cells) for label, cells in layers]
        parts.append(table(["Layer", "Original", *names], rows))
    return "\n\n".join(parts) + "\n"


def _networks(runs: Sequence[Run]) -> list[tuple[str, Figures]]:
    return [(run.name, run.summary.best) for run in runs]


def _originals(runs: Sequence[Run]) -> list[tuple[str, Figures]]:
    return [(f"original of {run.name}", run.summary.base) for run in runs]


def _drawn(runs: Sequence[Run], unit: str) -> bool:
    return any(
        cost_of(run.summary.best, unit) is not None and run.summary.best.score is not None
        for run in runs
    )


def _chart(runs: Sequence[Run], unit: str) -> Markup:
    axes = Axes(UNITS[unit], "score", lambda v: format_cost(unit, v), lambda v: f"{v:.4g}")
    return scatter(list(_points(runs, unit)), axes)


def _points(runs: Sequence[Run], unit: str) -> Iterator[Point]:
    for kind, rows in (("original", _originals(runs)), ("pick", _networks(runs))):
        for name, figures in rows:
            cost = cost_of(figures, unit)
            if cost is not None and figures.score is not None:
                title = f"{name}: {format_cost(unit, cost)}, score {score_text(figures.score)}"
                yield Point(cost, figures.score, title, kind)
