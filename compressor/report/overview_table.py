"""The networks of a frontier as rows of text. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterator

from compressor.report.comparison import count_text, milliseconds_text, score_text
from compressor.report.overview import Overview
from compressor.report.result import Figures

_INT8_TITLES = ("int8 score", "int8 latency")


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
