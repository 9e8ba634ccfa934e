"""Reads a file of a run directory as data that every page can show. Knows no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.untrusted import read_json

_LARGEST = 1e18  # no network has as many multiply-adds, and charts can still be drawn


def read_plain(path: Path) -> Any:
    """The JSON values of a file, whoever wrote it; see `compressor.untrusted.read_json`.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is no JSON, or holds a number or a text that no run comes to.
    """
    data = read_json(path)
    _check(data)
    return data


def _check(value: Any) -> None:
    if isinstance(value, dict):
        for inner in value.values():
            _check(inner)
    elif isinstance(value, list):
        for inner in value:
            _check(inner)
    elif isinstance(value, int | float) and not abs(value) <= _LARGEST:
        raise ValueError(
            f"a number must be at most {_LARGEST:g}, but one of {_size(value)} is there"
        )


def _size(value: float) -> str:
    return f"{value.bit_length()} bits" if isinstance(value, int) else f"{value:g}"
