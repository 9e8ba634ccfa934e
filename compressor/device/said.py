"""What a program said, as a message can quote it."""

from __future__ import annotations

from typing import IO

SHOWN = 300  # characters of a program's words that a message quotes


def read_text(file: IO[bytes]) -> str:
    """All of a file that a program wrote; what is not UTF-8 is shown as such."""
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def last_line(text: str) -> str:
    """The last line that says something, without the space around it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
