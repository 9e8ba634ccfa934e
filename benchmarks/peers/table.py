"""Rows as Markdown, one line for each method and budget. Knows no torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from benchmarks.peers.protocol import ORIGINAL, TOLERANCE, Row

_HEAD = (
    "method", "MAdds", "parameters", "as returned", "BatchNorm recalibrated", "fine-tuned",
    "time (processor)", "score calls", "peak memory", "ONNX Runtime",
)  # fmt: skip
_NOTHING = "–"


def markdown(rows: Sequence[Row]) -> str:
    """The table, and below it what must be known of its lines."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.budget, row.method), []).append(row)
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD))]
    lines += [_line(_cells(budget, method, found)) for (budget, method), found in groups.items()]
    remarks = list(dict.fromkeys(remark for row in rows for remark in _remarks(row)))
    return "\n".join([*lines, "", *(f"- {remark}" for remark in remarks)]).rstrip() + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(budget: str, method: str, rows: Sequence[Row]) -> list[str]:
    name = method if method == ORIGINAL else f"{method}, {budget}"
    made = [row for row in rows if row.made is not None]
    if not made:
        return [name, "failed, see below", *[_NOTHING] * (len(_HEAD) - 2)]
    return [
        name + (f" ({len(made)} of {len(rows)} seeds)" if len(made) < len(rows) else ""),
        _spread(made, "made.madds_share", "{:.1f}", " %", 100),
        _spread(made, "made.params_share", "{:.1f}", " %", 100),
        _spread(made, "judged.returned", "{:.2f}", " %"),
        _spread(made, "judged.recalibrated", "{:.2f}", " %"),
        _spread(made, "judged.finetuned", "{:.2f}", " %"),
        *_effort(method, made),
        _latency(made),
    ]


def _effort(method: str, rows: Sequence[Row]) -> list[str]:
    if method == ORIGINAL:
        return [_NOTHING] * 3
    return [
        f"{_duration(rows, 'made.seconds')} ({_duration(rows, 'made.cpu_seconds')})",
        _spread(rows, "made.score_calls", "{:.0f}"),
        _spread(rows, "made.memory_mib", "{:.0f}", " MiB"),
    ]


def _duration(rows: Sequence[Row], path: str) -> str:
    longest = max(_field(row, path) or 0.0 for row in rows)
    return _spread(rows, path, "{:.0f}" if longest >= 10 else "{:.2g}", " s")


def _latency(rows: Sequence[Row]) -> str:
    share = _spread(rows, "timing.ratio", "{:.0f}", " %", 100)
    if share == _NOTHING:
        return share
    return f"{_spread(rows, 'timing.median_ms', '{:.3g}', ' ms')}, {share}"


def _spread(rows: Sequence[Row], path: str, form: str, unit: str = "", factor: float = 1.0) -> str:
    """The mean of a field, with the standard deviation where there are several values."""
    found = [_field(row, path) for row in rows]
    values = [factor * v for v in found if v is not None]
    if not values:
        return _NOTHING
    text = form.format(statistics.mean(values))
    if len(values) > 1:
        text += f" ± {form.format(statistics.stdev(values))}"
    return text + unit


def _field(row: Row, path: str) -> float | None:
    part, _, name = path.partition(".")
    holder = getattr(row, part)
    return None if holder is None else getattr(holder, name)


def _remarks(row: Row) -> Iterable[str]:
    name = f"{row.method}, {row.budget}, seed {row.seed}"
    if row.reason:
        yield f"{name}: failed: {row.reason}"
    if row.made is None or row.method == ORIGINAL:
        return
    if not row.made.on_target:
        yield (
            f"{name}: its MAdds are not within {TOLERANCE:.0%} of the target, "
            f"{row.made.madds_share:.2%} for {row.made.target:.2%}, after "
            f"{len(row.made.attempts)} attempts"
        )
    yield from (f"{name}: {note}" for note in row.made.notes)
