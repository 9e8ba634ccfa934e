"""What a program said, as a message can quote it."""

from __future__ import annotations

import os
from typing import IO

_MOST = 32 << 20  # bytes that are read of what a program wrote: its answer comes last
SHOWN = 300  # characters of a program's words that a message quotes


def read_text(file: IO[bytes]) -> str:
    """The end of a file that a program wrote, all of it if it is not very long.

    What is not UTF-8 is shown as such.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MOST))
    return file.read(_MOST).decode("utf-8", "replace")


def last_line(text: str) -> str:
    """The last line that says something, without the space around it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
