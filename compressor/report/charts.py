"""Charts as inline SVG: no script, no external reference, colours from the page's style sheet."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 420, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 40
_TINY = 1e-300  # below it there is no room for ticks
_BAR, _GAP, _HEAD = 12, 8, 26  # of charts of bars: one bar, between two rows, above a panel
_LABEL, _VALUE = 190, 62  # what is left of the bars and right of them
_WIDTH_OF_BARS = 560
_LETTERS = 29  # of a label, as many as have room
SERIES = ("was", "kept", "pick")
"""Classes of the bars of one row, in their order."""
_MARGIN = 12  # around a chart that is a file of its own
_STYLE = (
    ":root{--back:#fff;--soft:#5c6570;--was:#cbd5e1;--kept:#1f6fb2;--pick:#c2410c}"
    "@media(prefers-color-scheme:dark){:root{--back:#14181d;--soft:#9aa5b1;--was:#3d4855;"
    "--kept:#62a8e5;--pick:#fb923c}}"
    "text{fill:var(--soft);font:11px system-ui,sans-serif}.head{font-weight:600}"
    ".end{text-anchor:end}.back{fill:var(--back)}.was{fill:var(--was)}.kept{fill:var(--kept)}"
    ".pick{fill:var(--pick)}"
)
Format = Callable[[float], str]
Row = tuple[str, Sequence["float | None"]]


@dataclass(frozen=True)
class Point:
    """A mark of a chart; `title` is shown on hover, `kind` is its CSS class."""

    x: float
    y: float
    title: str
    kind: str = "dot"


@dataclass(frozen=True)
class Axes:
    """Names of the axes and how their values read."""

    x: str
    y: str
    format_x: Format
    format_y: Format


def scatter(
    points: Sequence[Point],
    axes: Axes,
    line: Sequence[tuple[float, float]] = (),
    limit: float | None = None,
) -> Markup:
    """Points in the order in which they are painted, a line below them, a limit across x.

    Args:
        points: the marks; empty gives an empty string.
        axes: names and formats.
        line: corners of a line in the units of the axes.
        limit: where a vertical line marks the most that was allowed.
    """
    if not points:
        return Markup("")
    across = [p.x for p in points] + [x for x, _ in line] + ([] if limit is None else [limit])
    x = _Scale.over(across, _LEFT, _WIDTH - _RIGHT)
    y = _Scale.over([p.y for p in points], _HEIGHT - _BOTTOM, _TOP)
    parts = [_frame(axes, x, y)]
    if limit is not None:
        at = x(limit)
        parts.append(
            _tag("path", d=f"M{at:.1f} {_TOP}V{_HEIGHT - _BOTTOM}", class_="limit")
            + _text(at - 4, _TOP + 9, "limit", "note end")
        )
    if len(line) > 1:
        corners = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in line)
        parts.append(_tag("path", d=f"M{corners}", class_="line"))
    parts += [_mark(p, x(p.x), y(p.y)) for p in points]
    return _svg(parts, f"{axes.y} against {axes.x}")


def profile(names: Sequence[str], before: Sequence[int], after: Sequence[int]) -> Markup:
    """Widths along the network: a pale bar for the original, a full one for what is kept."""
    if not names:
        return Markup("")
    step = (_WIDTH - _LEFT - _RIGHT) / len(names)
    y = _Scale(0, max(*before, 1), _HEIGHT - _BOTTOM, _TOP)
    axes = Axes("search layer, in forward order", "channels", lambda _: "", lambda v: f"{v:.0f}")
    parts = [_frame(axes, None, y)]
    for i, (name, old, new) in enumerate(zip(names, before, after, strict=True)):
        left, thin = _LEFT + i * step, step * (0.8 if step > 3 else 1)
        bars = [_bar(left, y(v), thin, kind) for v, kind in ((old, "was"), (new, "kept"))]
        parts.append(_group(bars, f"{name}: {old} → {new} channels"))
    return _svg(parts, "channels of each search layer, original and compressed")


def bars(panels: Sequence[tuple[str, Sequence[Row]]], names: Sequence[str], show: Format) -> Markup:
    """Rows of lying bars, one bar for each series; each panel has a scale of its own.

    Args:
        panels: title and rows of each; a row is its label and a value for each series, None where
            there is none.
        names: of the series, at most as many as `SERIES`.
        show: how a value reads.
    """
    parts, top = [_legend(names)], _BAR * len(names) + _GAP
    for title, rows in panels:
        parts.append(_text(0, top + _HEAD - 9, title, "head"))
        top += _HEAD
        longest = max([v for _, row in rows for v in row if v is not None], default=0.0)
        x = _Scale(0.0, max(longest, _TINY), _LABEL, _WIDTH_OF_BARS - _VALUE)
        for label, row in rows:
            parts.append(_bar_row(label, row, x, top, show))
            top += _BAR * len(names) + _GAP
    return _svg(parts, ", ".join(title for title, _ in panels), _WIDTH_OF_BARS, top)


def standalone(chart: Markup) -> str:
    """A chart as a file of its own: it brings its colours, for light and for dark."""
    found = re.fullmatch(r'<svg (.*?)viewBox="0 0 ([\d.]+) ([\d.]+)"(.*?)>(.*)', chart, re.DOTALL)
    if found is None:
        raise ValueError("a chart of this module is needed")
    before, width, height, after, content = found.groups()
    sizes = float(width) + 2 * _MARGIN, float(height) + 2 * _MARGIN
    place = f"{-_MARGIN} {-_MARGIN} {sizes[0]:g} {sizes[1]:g}"
    back = f'<rect class="back" x="{-_MARGIN}" y="{-_MARGIN}" width="100%" height="100%"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {before}viewBox="{place}" width="{sizes[0]:g}" '
        f'height="{sizes[1]:g}"{after}><style>{_STYLE}</style>{back}{content}\n'
    )


def share_bar(kept: float) -> Markup:
    """A flat bar, filled to a share in 0..1."""
    width = 100 * min(max(kept, 0.0), 1.0)
    return Markup(
        '<svg class="share" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="was" width="100" height="8"/>'
        '<rect class="kept" width="{}" height="8"/></svg>'
    ).format(f"{width:.1f}")


@dataclass(frozen=True)
class _Scale:
    """Values `low`..`high` to coordinates `start`..`end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Scale:
        low, high = min(values), max(values)
        spread, size = high - low, max(abs(low), abs(high))
        least = max(1e-9 * size, _TINY)
        margin = 0.06 * (spread if spread > least else size if size > _TINY else 1.0)
        return cls(low - margin, high + margin, start, end)

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the scale: 3 to 6 of them."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [i * step for i in range(first, last + 1)]


def _frame(axes: Axes, x: _Scale | None, y: _Scale) -> Markup:
    floor = _HEIGHT - _BOTTOM
    parts = []
    for tick in y.ticks():
        at = y(tick)
        parts.append(_tag("path", d=f"M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}", class_="grid"))
        parts.append(_text(_LEFT - 5, at + 3.5, axes.format_y(tick), "tick end"))
    for tick in x.ticks() if x else ():
        parts.append(_text(x(tick) if x else 0, floor + 14, axes.format_x(tick), "tick middle"))
    parts.append(_tag("path", d=f"M{_LEFT} {floor}H{_WIDTH - _RIGHT}", class_="axis"))
    parts.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 6, axes.x, "name middle"))
    turned = Markup('<text class="name middle" transform="translate(11 {}) rotate(-90)">{}</text>')
    return Markup("").join([*parts, turned.format(f"{(_TOP + floor) / 2:.0f}", axes.y)])


def _mark(point: Point, x: float, y: float) -> Markup:
    radius = {"pick": 6.0, "original": 5.0, "dot": 2.2}.get(point.kind, 3.0)
    return _group(
        [_tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=radius, class_=point.kind)], point.title
    )


def _bar(x: float, y: float, width: float, kind: str) -> Markup:
    height = _HEIGHT - _BOTTOM - y
    return _tag(
        "rect",
        x=f"{x:.2f}",
        y=f"{y:.1f}",
        width=f"{width:.2f}",
        height=f"{height:.1f}",
        class_=kind,
    )


def _legend(names: Sequence[str]) -> Markup:
    parts = []
    for place, (name, kind) in enumerate(zip(names, SERIES, strict=False)):
        y = place * _BAR
        parts.append(_tag("rect", x=0, y=y + 2, width=9, height=9, class_=kind))
        parts.append(_text(14, y + 10, name, "tick"))
    return Markup("").join(parts)


def _bar_row(
    label: str, row: Sequence[float | None], x: _Scale, top: float, show: Format
) -> Markup:
    short = label if len(label) <= _LETTERS else f"{label[:9]}…{label[10 - _LETTERS :]}"
    middle = top + _BAR * len(row) / 2 + 4
    parts = [_text(_LABEL - 6, middle, short, "tick end")]
    for place, (value, kind) in enumerate(zip(row, SERIES, strict=False)):
        y, end = top + place * _BAR, x(value or 0.0)
        width = f"{end - _LABEL:.1f}"
        parts.append(_tag("rect", x=_LABEL, y=y + 1, width=width, height=_BAR - 2, class_=kind))
        parts.append(_text(end + 4, y + 10, "–" if value is None else show(value), "tick"))
    return _group(parts, f"{label}: " + ", ".join("–" if v is None else show(v) for v in row))


def _group(parts: Sequence[Markup], title: str) -> Markup:
    return Markup("<g><title>{}</title>{}</g>").format(title, Markup("").join(parts))


def _tag(name: str, **attributes: object) -> Markup:
    text = " ".join(f'{k.rstrip("_")}="{escape(v)}"' for k, v in attributes.items())
    return Markup(f"<{name} {text}/>")  # noqa: S704 - the values are escaped above


def _text(x: float, y: float, text: str, kind: str) -> Markup:
    return Markup('<text x="{}" y="{}" class="{}">{}</text>').format(
        f"{x:.1f}", f"{y:.1f}", kind, text
    )


def _svg(
    parts: Sequence[Markup], label: str, width: float = _WIDTH, height: float = _HEIGHT
) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return head.format(width, height, label) + Markup("").join(parts) + Markup("</svg>")
