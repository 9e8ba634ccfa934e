"""Charts of a run that need no script: score against cost, over the search, and widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from markupsafe import Markup

from compressor.budget import UNITS, format_cost
from compressor.report.charts import Axes, Point, profile, scatter
from compressor.report.comparison import score_text
from compressor.report.overview import Overview
from compressor.report.result import Figures, FrontierPoint, LayerRow, RunSummary, ScoredRow
from compressor.report.words import channels_kept


def unit_of(summary: RunSummary) -> str:
    """The cost that scores are drawn against: the first budget's."""
    return summary.budgets[0].unit if summary.budgets else "madds"


def cost_of(figures: Figures | FrontierPoint, unit: str) -> float | None:
    """A network's cost in a unit; None where it was not measured."""
    known: Mapping[str, float | None] = {
        "madds": figures.madds,
        "params": figures.params,
        "latency": figures.latency_ms,
    }
    return known[unit]


def inside(summary: RunSummary, row: ScoredRow) -> bool:
    """Whether an evaluation keeps the first budget."""
    if not summary.budgets:
        return True
    budget = summary.budgets[0]
    return row.cost <= budget.limit and (budget.low is None or row.cost >= budget.low)


def best_so_far(summary: RunSummary) -> list[tuple[float, float]]:
    """Corners of the line of the best score within the budget, over the evaluations."""
    line: list[tuple[float, float]] = []
    for row in summary.scored:
        if row.score is None or not inside(summary, row):
            continue
        if not line or row.score > line[-1][1]:
            line += [(row.order, line[-1][1])] if line else []
            line.append((row.order, row.score))
    return [*line, (summary.scored[-1].order, line[-1][1])] if line else []


def width_rows(widths: tuple[LayerRow, ...]) -> list[tuple[str, int, int]]:
    """Name, original and kept channels of the layers that decide channels."""
    return [
        (row.name, row.original.channels, kept)
        for row in widths
        if row.original.channels is not None and (kept := channels_kept(row)) is not None
    ]


def frontier_chart(summary: RunSummary) -> Markup:
    """Score against the first budget's cost: tried, frontier, original, compressed."""
    unit = unit_of(summary)
    points = [
        Point(row.cost, row.score, f"evaluation {row.order}: score {score_text(row.score)}")
        for row in summary.scored
        if row.score is not None
    ]
    front = [
        p for f in summary.frontier for p in _point(f, unit, f"option {f.architecture}", "front")
    ]
    marks = [
        *_point(summary.base, unit, "original", "original"),
        *_point(summary.best, unit, "compressed", "pick"),
    ]
    limit = summary.budgets[0].limit if summary.budgets else None
    line = sorted((p.x, p.y) for p in front)
    return scatter([*points, *front, *marks], _axes(unit), line, limit)


def search_chart(summary: RunSummary) -> Markup:
    """The scores in the order of the search, and the best within the budget as a line."""
    points = [
        Point(
            row.order,
            row.score,
            f"evaluation {row.order}: score {score_text(row.score)}, "
            f"{format_cost(unit_of(summary), row.cost)}",
            "front" if inside(summary, row) else "dot",
        )
        for row in summary.scored
        if row.score is not None
    ]
    axes = Axes(
        "evaluation", "score", lambda v: f"{v:g}" if v == int(v) else "", lambda v: f"{v:.4g}"
    )
    return scatter(points, axes, best_so_far(summary))


def widths_chart(widths: tuple[LayerRow, ...]) -> Markup:
    """Channels of every layer, original and compressed."""
    rows = width_rows(widths)
    return profile([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])


def overview_unit(overview: Overview) -> str:
    """What the budgets of a frontier limit."""
    return overview.rows[0].budget.partition("=")[0]


def overview_chart(overview: Overview) -> Markup:
    """The networks of a frontier, and the original."""
    unit = overview_unit(overview)
    found = [p for row in overview.rows for p in _point(row.best, unit, row.budget, "pick")]
    line = sorted((p.x, p.y) for p in found)
    points = [*found, *_point(overview.base, unit, "original", "original")]
    return scatter(points, _axes(unit), line)


def _axes(unit: str) -> Axes:
    return Axes(UNITS[unit], "score", lambda v: format_cost(unit, v), lambda v: f"{v:.4g}")


def _point(figures: Figures | FrontierPoint, unit: str, name: str, kind: str) -> Iterator[Point]:
    cost = cost_of(figures, unit)
    if cost is not None and figures.score is not None:
        title = f"{name}: {format_cost(unit, cost)}, score {score_text(figures.score)}"
        yield Point(cost, figures.score, title, kind)
