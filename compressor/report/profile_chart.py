"""Profiles as a picture: where the time goes, the original beside others. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from compressor.budget import format_cost
from compressor.device.profile import Key, Profile, grouped
from compressor.errors import UsageError
from compressor.files import write_text
from compressor.report.charts import SERIES, Row, bars, standalone

_KINDS, _PLACES = 10, 20  # rows at most


def profile_chart(profiles: Mapping[str, Profile]) -> Markup:
    """Inline SVG: time by kind of operator, and by module, the slowest first.

    Raises:
        UsageError: more profiles than a picture has colours.
    """
    check_picture(len(profiles))
    panels = [
        ("By operator", _rows(profiles, lambda node: node.kind, _KINDS)),
        ("By module", _rows(profiles, lambda node: node.place, _PLACES)),
    ]
    names = [f"{name}: {_show(profile.ms)}" for name, profile in profiles.items()]
    return bars(panels, names, _show)


def check_picture(profiles: int) -> None:
    """Raises `UsageError` where there are more profiles than a picture has colours."""
    if profiles > len(SERIES):
        raise UsageError(
            f"a picture shows at most {len(SERIES)} profiles, but got {profiles}; profile fewer "
            "models at once"
        )


def write_profile_picture(profiles: Mapping[str, Profile], path: Path) -> Path:
    """Writes the picture as one SVG file, readable in light and in dark: whole or not at all.

    Raises:
        UsageError: more profiles than a picture has colours.
        RunError: the place cannot be written.
    """
    return write_text(path, standalone(profile_chart(profiles)))


def _rows(profiles: Mapping[str, Profile], key: Key, most: int) -> list[Row]:
    return [
        (group, [None if node is None else node.ms for node in nodes])
        for group, nodes in grouped(profiles, key, most)
    ]


def _show(milliseconds: float) -> str:
    return format_cost("latency", milliseconds)
