"""The original beside the compressed network and its quantised form, as texts. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from compressor.budget import format_cost
from compressor.report.result import Figures


@dataclass(frozen=True)
class Compared:
    """A row of the before/after table; texts, a dash where nothing was measured."""

    what: str
    base: str
    best: str
    ratio: str
    int8: str = "–"
    int8_ratio: str = "–"


def comparison(
    base: Figures, best: Figures, score: str = "", int8: Figures | None = None
) -> Iterator[Compared]:
    """Original beside compressed: MAdds, parameters, file size, latency, the score by name.

    Where the network was also quantised, with that beside the original as well.
    """
    last = int8 or best
    rows: tuple[tuple[str, Callable[[Figures], float | None], Callable[[float], str]], ...] = (
        ("MAdds", lambda f: f.madds, count_text),
        ("Parameters", lambda f: f.params, count_text),
        ("ONNX file", lambda f: f.file_bytes, bytes_text),
        ("ONNX Runtime latency", lambda f: f.latency_ms, milliseconds_text),
    )
    for what, read, show in rows:
        old, *_ = values = [read(figures) for figures in (base, best, last)]
        ratios = [f"{v / old:.1%}" if old and v is not None else "–" for v in values[1:]]
        texts = ["–" if value is None else show(value) for value in values]
        yield Compared(what, texts[0], texts[1], ratios[0], texts[2], ratios[1])
    what = f"Score ({score})" if score else "Score"
    texts = [score_text(figures.score) for figures in (base, best, last)]
    changes = [change_text(base, figures) for figures in (best, last)]
    yield Compared(what, texts[0], texts[1], changes[0], texts[2], changes[1])


def count_text(value: float) -> str:
    """An amount of MAdds or parameters."""
    return format_cost("madds", value)


def milliseconds_text(value: float) -> str:
    """A latency."""
    return format_cost("latency", value)


def bytes_text(value: float) -> str:
    """The size of a file."""
    return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"


def score_text(value: float | None) -> str:
    """A score in four digits; a dash where there is none."""
    return "–" if value is None else f"{value:.4g}"


def change_text(base: Figures, best: Figures) -> str:
    """By how much the score changed; a dash where one is missing."""
    if base.score is None or best.score is None:
        return "–"
    return f"{best.score - base.score:+.4g}"
