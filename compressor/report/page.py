"""`report.html`: what a run did, in one file that opens anywhere. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from compressor.budget import UNITS, format_cost
from compressor.files import write_text
from compressor.report.charts import Axes, Point, profile, scatter, share_bar
from compressor.report.comparison import comparison, count_text, milliseconds_text, score_text
from compressor.report.overview import Overview
from compressor.report.profile_chart import profile_chart
from compressor.report.result import Figures, FrontierPoint, LayerRow, RunSummary, Setting

FILE_NAME = "report.html"
_INT8_TITLES = ("int8 score", "int8 latency")


def write_report(summary: RunSummary, path: Path) -> Path:
    """Writes the report as one self-contained HTML file: the whole file or nothing.

    Raises:
        RunError: the place cannot be written.
    """
    return write_text(path, render(summary))


def render(summary: RunSummary) -> str:
    """The report's HTML; needs no network, no script and no other file to be read."""
    return _template("report.html.j2").render(
        run=summary,
        name=_target(summary.settings),
        sentence=sentence(summary),
        comparison=list(comparison(summary.base, summary.best, score_of(summary), summary.int8)),
        budgets=[(b, b.allowed, format_cost(b.unit, b.reached)) for b in summary.budgets],
        frontier=_frontier_chart(summary),
        search=_search_chart(summary),
        profile=_profile_chart(summary.widths),
        widths=[(row, _share(row)) for row in summary.widths],
        share_bar=share_bar,
        times=profile_chart(summary.profiles) if summary.profiles else "",
        facts=list(_facts(summary)),
    )


def write_overview(overview: Overview, path: Path) -> Path:
    """Writes the report of a frontier: its table, with links to the reports of its networks.

    Raises:
        RunError: the place cannot be written.
    """
    return write_text(path, render_overview(overview))


def render_overview(overview: Overview) -> str:
    """The HTML of a frontier's report."""
    titles, *rows = overview_table(overview)
    links = [None, *(f"{quote(row.folder)}/{FILE_NAME}" for row in overview.rows)]
    unit = overview.rows[0].budget.partition("=")[0]
    found = [p for row in overview.rows for p in _point(row.best, unit, row.budget, "pick")]
    line = sorted((p.x, p.y) for p in found)
    points = [*found, *_point(overview.base, unit, "original", "original")]
    return _template("frontier.html.j2").render(
        run=overview,
        name=_target(overview.settings),
        titles=titles,
        rows=list(zip(links, rows, strict=True)),
        chart=scatter(points, _axes(unit), line),
    )


def overview_table(overview: Overview) -> Iterator[tuple[str, ...]]:
    """Titles, then the original, then each network of a frontier, as texts."""
    score = overview.settings.get("score")
    quantised = any(row.int8 for row in overview.rows)
    yield (
        "Budget", f"Score ({score})" if score else "Score", "MAdds", "Parameters",
        "ONNX Runtime latency", *(_INT8_TITLES if quantised else ()), "Folder",
    )  # fmt: skip
    base = overview.base
    for name, figures, int8, folder in [
        ("original", base, None, "–"),
        *((row.budget, row.best, row.int8, row.folder) for row in overview.rows),
    ]:
        latency = figures.latency_ms
        yield (
            name,
            score_text(figures.score),
            f"{count_text(figures.madds)} ({figures.madds / max(base.madds, 1):.1%})",
            f"{count_text(figures.params)} ({figures.params / max(base.params, 1):.1%})",
            "–" if latency is None else milliseconds_text(latency),
            *(_int8_texts(int8) if quantised else ()),
            folder,
        )


def _int8_texts(int8: Figures | None) -> tuple[str, str]:
    if int8 is None or int8.latency_ms is None:
        return "–", "–"
    return score_text(int8.score), milliseconds_text(int8.latency_ms)


def _template(name: str) -> Template:
    folder = resources.files("compressor.report")
    loader = FunctionLoader(lambda file: folder.joinpath(file).read_text(encoding="utf-8"))
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=loader,
    )  # fmt: skip
    return environment.get_template(name)


def _target(settings: Mapping[str, Setting]) -> str:
    return Path(str(settings.get("target") or "the network")).name


def score_of(summary: RunSummary) -> str:
    """The name of the score; empty where a run does not say."""
    return str(summary.settings.get("score") or "")


def sentence(summary: RunSummary) -> str:
    """The outcome in one plain sentence."""
    base, best = summary.base, summary.best
    madds, params = best.madds / max(base.madds, 1), best.params / max(base.params, 1)
    text = f"The compressed network needs {madds:.1%} of the original's multiply-adds "
    text += f"and {params:.1%} of its parameters"
    if base.latency_ms and best.latency_ms:
        text += f", takes {best.latency_ms:.3g} ms instead of {base.latency_ms:.3g} ms"
    if base.score is not None and best.score is not None:
        ours, theirs = score_text(best.score), score_text(base.score)
        text += f", and scores {ours} where the original scores {theirs}"
        text += f" ({score_of(summary)})" if score_of(summary) else ""
    int8 = summary.int8
    if int8 is not None and int8.score is not None and int8.latency_ms is not None:
        text += (
            f"; quantised, it takes {int8.latency_ms:.3g} ms and scores {score_text(int8.score)}"
        )
    missed = [b.requested for b in summary.budgets if not b.met]
    return text + (f"; it misses {' and '.join(missed)}." if missed else ".")


def _unit(summary: RunSummary) -> str:
    return summary.budgets[0].unit if summary.budgets else "madds"


def _cost(figures: Figures | FrontierPoint, unit: str) -> float | None:
    known: Mapping[str, float | None] = {
        "madds": figures.madds,
        "params": figures.params,
        "latency": figures.latency_ms,
    }
    return known[unit]


def _axes(unit: str) -> Axes:
    return Axes(UNITS[unit], "score", lambda v: format_cost(unit, v), lambda v: f"{v:.4g}")


def _point(figures: Figures | FrontierPoint, unit: str, name: str, kind: str) -> Iterator[Point]:
    cost = _cost(figures, unit)
    if cost is not None and figures.score is not None:
        title = f"{name}: {format_cost(unit, cost)}, score {score_text(figures.score)}"
        yield Point(cost, figures.score, title, kind)


def _frontier_chart(summary: RunSummary) -> Markup:
    unit = _unit(summary)
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


def _search_chart(summary: RunSummary) -> Markup:
    limit = summary.budgets[0].limit if summary.budgets else float("inf")
    low = summary.budgets[0].low if summary.budgets else None
    points: list[Point] = []
    line: list[tuple[float, float]] = []
    best = float("-inf")
    for row in summary.scored:
        if row.score is None:
            continue
        inside = row.cost <= limit and (low is None or row.cost >= low)
        cost = format_cost(_unit(summary), row.cost)
        title = f"evaluation {row.order}: score {score_text(row.score)}, {cost}"
        points.append(Point(row.order, row.score, title, "front" if inside else "dot"))
        if inside and row.score > best:
            line += (
                [(row.order, best), (row.order, row.score)] if line else [(row.order, row.score)]
            )
            best = row.score
    if line:
        line.append((summary.scored[-1].order, best))
    axes = Axes(
        "evaluation", "score", lambda v: f"{v:g}" if v == int(v) else "", lambda v: f"{v:.4g}"
    )
    return scatter(points, axes, line)


def _profile_chart(widths: tuple[LayerRow, ...]) -> Markup:
    rows = [
        (row.name, row.original.channels, row.chosen.channels)
        for row in widths
        if row.original.channels is not None and row.chosen.channels is not None
    ]
    return profile([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])


def _share(row: LayerRow) -> float:
    """Share of the layer's weights per input that stays: channels by kernel area."""
    share = 1.0
    if row.original.channels and row.chosen.channels is not None:
        share *= row.chosen.channels / row.original.channels
    if row.original.kernel and row.chosen.kernel is not None:
        share *= (row.chosen.kernel / row.original.kernel) ** 2
    return share


def _facts(summary: RunSummary) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Titled tables of names and values: how the run was set up and how long it took."""
    work = [
        ("evaluations", str(summary.evaluations)),
        ("failed", str(summary.failed)),
        *((stage, f"{seconds:.1f} s") for stage, seconds in summary.stages.items()),
        ("in all", f"{summary.seconds:.1f} s"),
    ]
    yield "Work", work
    yield "Settings", [(k, _setting(v)) for k, v in summary.settings.items()]
    yield "Machine", [(k, str(v)) for k, v in summary.machine.items()]
    yield "Versions", list(summary.versions.items())


def _setting(value: Setting) -> str:
    if value is None:
        return "–"
    return ", ".join(value) if isinstance(value, tuple) else str(value)
