"""Figures for Plotly as plain values; nothing of Plotly is imported. Knows no torch.

A trace's `meta` says what it stands for: the page's script gives it the colours of the page, light
or dark. Texts that come from a user's network are escaped, since Plotly reads tags in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from markupsafe import escape

from compressor.budget import UNITS, format_cost
from compressor.device.profile import Key, Profile, grouped
from compressor.report.charts import SERIES
from compressor.report.comparison import score_text
from compressor.report.overview import Overview
from compressor.report.result import Figures, FrontierPoint, LayerRow, RunSummary
from compressor.report.run_charts import best_so_far, cost_of, inside, overview_unit, unit_of
from compressor.report.words import channels_kept

Figure: TypeAlias = dict[str, Any]
_SHOWN = 12  # layers in a hover text; a click shows all
_NAMED = 12  # layers that have room for their names below the bars
_LETTERS = 24  # of a label beside a bar
_KINDS, _PLACES = 12, 24  # bars at most
_HEIGHT = 360
_FORMATS = {"madds": ".3~s", "params": ".3~s", "latency": ".3~g"}


def figures_of(summary: RunSummary) -> dict[str, Figure]:
    """The figures of a run's report, by the name of their place in the page."""
    found = {
        "frontier": _frontier(summary),
        "search": _search(summary),
        "widths": _widths(summary.widths),
        "operators": _times(summary.profiles, lambda node: node.kind, _KINDS),
        "modules": _times(summary.profiles, lambda node: node.place, _PLACES),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def overview_figures(overview: Overview) -> dict[str, Figure]:
    """The figure of a frontier's report."""
    unit = overview_unit(overview)
    networks = [(row.budget, row.best) for row in overview.rows]
    return {"frontier": networks_figure([("original", overview.base)], networks, unit)}


def networks_figure(
    originals: Sequence[tuple[str, Figures]],
    networks: Sequence[tuple[str, Figures]],
    unit: str,
    *,
    line: bool = True,
) -> Figure:
    """Named networks, score against cost.

    Args:
        originals: name and figures of what was compressed.
        networks: name and figures of what came of it.
        unit: the cost, a key of `compressor.budget.UNITS`.
        line: whether the networks belong to one search, which a line shows.
    """
    traces = []
    for meta, title, rows in (
        ("pick", "compressed", networks), ("original", "original", originals),
    ):  # fmt: skip
        points = [
            (cost_of(figures, unit), figures.score, _network_text(name, figures))
            for name, figures in rows
        ]
        known = sorted(p for p in points if p[0] is not None and p[1] is not None)
        traces.append(_trace(meta, title, known))
        if line and meta == "pick":
            traces[-1]["mode"] = "lines+markers"
    return _figure(traces, UNITS[unit], "score", _FORMATS[unit])


def _frontier(summary: RunSummary) -> Figure | None:
    unit = unit_of(summary)
    tried = [
        (row.cost, row.score, _evaluation(summary, place))
        for place, row in enumerate(summary.scored)
        if row.score is not None
    ]
    front = sorted(
        (
            (cost_of(point, unit), point)
            for point in summary.frontier
            if cost_of(point, unit) is not None
        ),
        key=lambda pair: pair[0] or 0.0,
    )
    if not tried and not front:
        return None
    texts = [_point_text(point, summary.widths) for _, point in front]
    rows = [(cost, point.score, text) for (cost, point), text in zip(front, texts, strict=True)]
    frontier = _trace("front", "frontier", rows, mode="lines+markers")
    frontier["customdata"] = [list(point.architecture) for _, point in front]
    one = (cost_of(summary.base, unit), summary.base.score, _network_text("original", summary.base))
    two = (cost_of(summary.best, unit), summary.best.score, _best_text(summary))
    base = _trace("original", "original", _known([one]))
    best = _trace("pick", "compressed", _known([two]))
    best["customdata"] = [list(summary.architecture)]
    traces = [_trace("dot", "tried", tried), frontier, base, best]
    figure = _figure(traces, UNITS[unit], "score", _FORMATS[unit])
    if summary.budgets:
        figure["layout"]["shapes"] = [
            _limit(x) for x in (summary.budgets[0].low, summary.budgets[0].limit) if x is not None
        ]
    if any(row.options for row in summary.widths):
        figure["layers"] = [[row.name, *row.options] for row in summary.widths]
    return figure


def _search(summary: RunSummary) -> Figure | None:
    groups: dict[str, list[tuple[Any, ...]]] = {"front": [], "dot": []}
    for place, row in enumerate(summary.scored):
        if row.score is not None:
            kind = "front" if inside(summary, row) else "dot"
            groups[kind].append((row.order, row.score, _evaluation(summary, place)))
    if not any(groups.values()):
        return None
    line = best_so_far(summary)
    best = _trace("line", "best so far", [(*corner, "") for corner in line], mode="lines")
    best["hoverinfo"] = "skip"
    names = (("front", "within the budget"), ("dot", "outside it"))
    traces = [best, *(_trace(kind, name, groups[kind]) for kind, name in names)]
    return _figure(traces, "evaluation", "score", "")


def _widths(widths: Sequence[LayerRow]) -> Figure | None:
    rows = [row for row in widths if row.original.channels and channels_kept(row) is not None]
    if not rows:
        return None
    texts = [f"{escape(row.name)}<br>{row.original} → {row.chosen}" for row in rows]
    axis = {"tickvals": list(range(len(rows))), "ticktext": [_short(r.name) for r in rows]}
    traces = []
    for meta, name, values in (
        ("was", "original", [row.original.channels for row in rows]),
        ("kept", "compressed", [channels_kept(row) for row in rows]),
    ):
        bars = {"type": "bar", "x": list(range(len(rows))), "y": values, "hovertext": texts}
        traces.append({**bars, "meta": meta, "name": name, "hoverinfo": "text"})
    figure = _figure(traces, "search layer, in forward order", "channels", "")
    figure["layout"] |= {"barmode": "overlay", "bargap": 0.2 if len(rows) <= 60 else 0}
    figure["layout"]["xaxis"] |= axis if len(rows) <= _NAMED else {"showticklabels": False}
    return figure


def _times(profiles: Mapping[str, Profile], key: Key, most: int) -> Figure | None:
    rows = grouped(profiles, key, most) if profiles else []
    if not rows or len(profiles) > len(SERIES):
        return None
    traces = []
    for place, (meta, (name, profile)) in enumerate(zip(SERIES, profiles.items(), strict=False)):
        times = [0.0 if nodes[place] is None else nodes[place].ms for _, nodes in rows]  # type: ignore[union-attr]
        texts = [
            f"{escape(group)}<br>{escape(name)}: {format_cost('latency', ms)}, "
            f"{ms / profile.ms if profile.ms else 0:.1%}"
            for (group, _), ms in zip(rows, times, strict=True)
        ]
        bars = {"type": "bar", "orientation": "h", "x": times, "y": list(range(len(rows)))}
        title = f"{escape(name)}: {format_cost('latency', profile.ms)}"
        traces.append(
            {**bars, "hovertext": texts, "hoverinfo": "text", "meta": meta, "name": title}
        )
    figure = _figure(traces, "milliseconds", "", "")
    figure["layout"]["yaxis"] |= {
        "autorange": "reversed", "tickvals": list(range(len(rows))),
        "ticktext": [_short(group) for group, _ in rows], "automargin": True,
    }  # fmt: skip
    figure["layout"] |= {"barmode": "group", "bargap": 0.25}
    figure["height"] = 110 + len(rows) * (14 * len(profiles) + 6)
    return figure


def _figure(traces: Sequence[Figure], x: str, y: str, form: str) -> Figure:
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    if form:
        axes["xaxis"]["tickformat"] = form  # type: ignore[assignment]
    return {"data": list(traces), "layout": axes, "height": _HEIGHT}


def _trace(
    meta: str, name: str, points: Sequence[tuple[Any, ...]], mode: str = "markers"
) -> Figure:
    return {
        "type": "scatter", "mode": mode, "meta": meta, "name": name,
        "x": [p[0] for p in points], "y": [p[1] for p in points],
        "hovertext": [p[2] for p in points], "hoverinfo": "text",
    }  # fmt: skip


def _limit(x: float) -> Figure:
    ends = {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", **ends, "line": {"dash": "dash", "width": 1}}


def _known(points: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [p for p in points if p[0] is not None and p[1] is not None]


def _evaluation(summary: RunSummary, place: int) -> str:
    row = summary.scored[place]
    lines = [
        f"evaluation {row.order}", f"score {score_text(row.score)}",
        format_cost(unit_of(summary), row.cost),
    ]  # fmt: skip
    return "<br>".join([*lines, *(f"{took:.3g} s" for took in summary.times[place : place + 1])])


def _network_text(name: str, figures: Figures | FrontierPoint) -> str:
    return f"<b>{escape(name)}</b><br>" + "<br>".join(_costs(figures))


def _costs(figures: Figures | FrontierPoint) -> Iterator[str]:
    yield f"score {score_text(figures.score)}"
    yield f"{format_cost('madds', figures.madds)} MAdds"
    yield f"{format_cost('params', figures.params)} parameters"
    if figures.latency_ms is not None:
        yield format_cost("latency", figures.latency_ms)


def _point_text(point: FrontierPoint, widths: Sequence[LayerRow]) -> str:
    lines = [_network_text("frontier", point), *_lines(point.architecture, widths)]
    return "<br>".join(lines)


def _best_text(summary: RunSummary) -> str:
    lines = _lines(summary.architecture, summary.widths)
    return "<br>".join([_network_text("compressed", summary.best), *lines])


def architecture_choices(
    architecture: Sequence[int], widths: Sequence[LayerRow], most: int = _SHOWN
) -> list[str]:
    """What an architecture changes: the layers with the most multiply-adds where there are many."""
    changed = [
        (row, _option(row, option))
        for row, option in zip(widths, architecture, strict=False)
        if _option(row, option) != str(row.original)
    ]
    kept = set(map(id, sorted(changed, key=lambda pair: -(pair[0].madds or 0))[:most]))
    lines = [f"{p[0].name}: {p[1]} of {p[0].original}" for p in changed if id(p) in kept]
    more = len(changed) - len(lines)
    return lines + ([f"and {more} more layer{'s' * (more > 1)}"] if more else [])


def _lines(architecture: Sequence[int], widths: Sequence[LayerRow]) -> list[str]:
    return [str(escape(line)) for line in architecture_choices(architecture, widths)]


def _option(row: LayerRow, option: int) -> str:
    known = 0 <= option < len(row.options)
    return row.options[option] if known else f"option {option}"


def _short(text: str) -> str:
    short = text if len(text) <= _LETTERS else f"{text[:7]}…{text[8 - _LETTERS :]}"
    return str(escape(short))
