"""Files that anybody may have written, read as data and within limits. Knows no torch."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

MOST_JSON = 32 << 20
"""Bytes of a JSON file; the values take up to thirty times as much memory. The largest file that
a run writes describes the search space, 2 MB for DenseNet-201."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path) -> Any:
    """The values in a JSON file, all of which can be written as JSON again.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is no plain file, is larger than `MOST_JSON`, or no such JSON.
    """
    return parse_json(read_bytes(path, MOST_JSON).decode("utf-8"))


def read_bytes(path: Path, most: int) -> bytes:
    """A plain file as a whole; never waits for somebody to write into a pipe.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is no plain file, or holds more than `most` bytes.
    """
    with os.fdopen(_opened(path), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no plain file")
        data = file.read(most + 1) if found.st_size <= most else None
    if data is None or len(data) > most:
        raise ValueError(f"it holds {found.st_size:,} bytes, more than {most:,}")
    return data


def _opened(path: Path) -> int:
    # What only some systems have: a pipe is opened without waiting, bytes come as they are.
    more = (getattr(os, name, 0) for name in ("O_NONBLOCK", "O_BINARY"))
    return os.open(path, os.O_RDONLY | sum(more))


def parse_json(text: str) -> Any:
    """The values of a JSON text: finite numbers, and texts that UTF-8 can hold.

    Raises:
        ValueError: it is no JSON, nested too deeply, or holds something else.
    """
    try:
        found = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()  # half a character cannot be written
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return found


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.40} is too large a number")
    return value
