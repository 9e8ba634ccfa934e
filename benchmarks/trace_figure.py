"""Draws two figures of a run's search: the table of its recombination, and its evaluations.

python -m benchmarks.trace_figure RUN --rows rows.svg --evaluations evaluations.svg

Only the journal of the run is read. The rows are those of the recombination that brought the
answer (`Trace.pick`), with neighbouring buckets drawn together.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compressor.trace.retrace import read_trace
from compressor.trace.rows import Bucket
from compressor.trace.trace import Pick, Trace

_BANDS = 12  # drawn rows
_BLUE, _GREY, _RED, _GREEN = "#2a6f97", "#8d99ae", "#c1121f", "#2b9348"
_COLOURS = {
    "hints": "#e09f3e", "even": "#6d597a", "random": _GREY, "expected effects": _BLUE,
    "drawn effects": "#61a5c2", "repeat": "#9d4edd", "gains of neighbours": "#c9184a",
}  # fmt: skip


def draw_rows(trace: Trace, pick: Pick, path: Path) -> None:
    """One column for each layer, one row for each range of costs; the answer's path over it."""
    pyplot = _pyplot()
    assert pick.recombination is not None  # noqa: S101 - there are rows
    counts = trace.recombinations[pick.recombination].layers
    top = max(bucket.number for row in pick.rows for bucket in row) + 1
    height = math.ceil(top / _BANDS)
    bands = math.ceil(top / height)
    most = max(sum(b.kept for b in _of(row, n, height)) for row in pick.rows for n in range(bands))
    figure, axis = pyplot.subplots(figsize=(1.55 * len(pick.rows) + 2.2, 6.4))
    path_bands = [step.bucket // height for step in pick.path]
    for place, row in enumerate(pick.rows):
        for band in range(bands):
            taken = path_bands[place] == band
            _cell(axis, place, band, _of(row, band, height), most, shift=0.17 * taken)
        if counts[place].beyond:
            words = f"{counts[place].beyond:,} too dear"
            axis.text(place, bands + 0.05, words, color=_RED, ha="center", va="center", fontsize=9)
    for place, (step, band) in enumerate(zip(pick.path, path_bands, strict=True)):
        _mark(axis, place, band, trace.layers[place].options[step.option])
    for place, (band, after) in enumerate(itertools.pairwise(path_bands)):
        ends = [place + 0.46, place + 1 - 0.46], [band, after]
        axis.plot(*ends, color=_GREEN, linewidth=2.5, zorder=6, solid_capstyle="round")
    _axes(axis, trace, top, height)
    figure.tight_layout()
    _save(figure, path)


def _of(row: Sequence[Bucket], band: int, height: int) -> list[Bucket]:
    return [bucket for bucket in row if bucket.number // height == band]


def _cell(
    axis: Any, place: int, band: int, buckets: Sequence[Bucket], most: int, *, shift: float
) -> None:
    """How many prefixes a range of costs keeps, and how many it beat."""
    kept = sum(bucket.kept for bucket in buckets)
    beaten = sum(bucket.stood for bucket in buckets) - kept
    if not kept:
        return
    shade = 0.08 + 0.5 * math.log1p(kept) / math.log1p(most)
    axis.add_patch(_rectangle(place, band, color=_BLUE, alpha=shade))
    middle = {"ha": "center", "va": "center", "fontsize": 8.5, "zorder": 5}
    axis.text(place + shift, band + 0.19 * (beaten > 0), f"{kept:,} kept", **middle)
    if beaten:
        axis.text(place + shift, band - 0.19, f"{beaten:,} beaten", color="#495057", **middle)


def _rectangle(place: int, band: int, **style: Any) -> Any:
    from matplotlib.patches import Rectangle  # noqa: PLC0415 - only where something is drawn

    return Rectangle((place - 0.46, band - 0.46), 0.92, 0.92, linewidth=0, **style)


def _mark(axis: Any, place: int, band: int, option: str) -> None:
    frame = _rectangle(place, band, facecolor="none", edgecolor=_GREEN, zorder=4)
    frame.set_linewidth(2.5)
    axis.add_patch(frame)
    axis.annotate(
        option, (place - 0.29, band), ha="center", va="center", color="white", fontsize=9,
        fontweight="bold", zorder=6,
        bbox={"boxstyle": "round,pad=0.25", "facecolor": _GREEN, "edgecolor": "none"},
    )  # fmt: skip


def _axes(axis: Any, trace: Trace, top: int, height: int) -> None:
    names = [layer.name.replace(".", "\n") for layer in trace.layers]
    counts = [f"{len(layer.options)} options" for layer in trace.layers]
    labels = [f"{name}\n({count})" for name, count in zip(names, counts, strict=True)]
    axis.set_xticks(range(len(labels)), labels, fontsize=9)
    starts = range(0, top, height)
    ranges = [f"{start}–{min(start + height, top) - 1}" for start in starts]
    bands = len(ranges)
    axis.set_yticks(range(bands), ranges, fontsize=8.5)
    axis.set_xlim(-0.55, len(labels) - 0.45)
    axis.set_ylim(-0.75, bands + 0.4)
    axis.axhline(bands - 0.5, color=_RED, linewidth=1.2, linestyle="--")
    axis.set_ylabel(
        "cost buckets; what is dearer than the dashed line is out of reach", fontsize=10
    )
    axis.set_xlabel("layers are decided from left to right", fontsize=10)
    axis.set_title(
        "Of the partial choices in a cost bucket only the best go on to the next layer;\n"
        "green: the choices of the network that was taken",
        fontsize=11,
    )
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)
    axis.tick_params(length=0)


def draw_evaluations(trace: Trace, path: Path) -> None:
    """Every score with where the network came from, and what was expected of it."""
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(9.4, 4.0))
    scored = [e for e in trace.scored if e.score is not None]
    for e in scored:
        if e.expected is not None and e.deviation is not None:
            axis.errorbar(e.number, e.expected, 2 * e.deviation, color="#d3d7de", zorder=1)
    for source in dict.fromkeys(e.source for e in scored):
        mine = [e for e in scored if e.source == source]
        axis.scatter(
            [e.number for e in mine], [e.score for e in mine], s=22, label=source, zorder=2,
            color=_COLOURS.get(source, _GREY),
        )  # fmt: skip
    if trace.pick is not None:
        taken = trace.scored[trace.pick.evaluation]
        axis.scatter(
            taken.number, taken.score, s=130, facecolor="none", edgecolor=_GREEN, linewidth=2.2,
            label="taken", zorder=3,
        )  # fmt: skip
    axis.set_xlabel("evaluation")
    axis.set_ylabel("score")
    axis.set_title("Scores; grey bars: expected before, ± two standard deviations", fontsize=11)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.tight_layout()
    _save(figure, path)


def _pyplot() -> Any:
    import matplotlib  # noqa: PLC0415 - an extra

    matplotlib.use("Agg")
    # the same run gives the same file
    matplotlib.rcParams.update({"svg.hashsalt": "trace", "svg.fonttype": "path"})
    from matplotlib import pyplot  # noqa: PLC0415 - after the choice of the backend

    return pyplot


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Draws what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=Path, metavar="FILE.svg")
    parser.add_argument("--evaluations", type=Path, metavar="FILE.svg")
    options = parser.parse_args()
    trace = read_trace(options.run)
    if options.rows:
        if trace.pick is None or not trace.pick.path:
            parser.error("the rows need a finished guided search; this run holds none")
        draw_rows(trace, trace.pick, options.rows)
    if options.evaluations:
        draw_evaluations(trace, options.evaluations)


if __name__ == "__main__":
    main()
