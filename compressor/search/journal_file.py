"""What must hold of a journal's file before SQLite opens it. Knows no torch."""

from __future__ import annotations

import os
from pathlib import Path

from compressor.errors import RunError

_MOST = 1 << 30  # bytes; ten thousand evaluations of a network with 300 layers take 50 MB
_NAMES_ANOTHER = bytes.fromhex("d9d505f920a163d7")  # ends a rollback file that names a third one


def require_plain(path: Path) -> None:
    """Returns if opening the file cannot touch any other; a missing one is fine.

    SQLite writes through links, waits for pipes, and deletes a file that a foreign rollback file
    names.

    Raises:
        RunError: the file, or one of those that SQLite keeps beside it, is something else.
    """
    try:
        finding = _finding(path)
    except OSError:
        return  # SQLite meets the same, and tells it
    if finding:
        raise RunError(
            f"a journal must be a plain file of this program, but {str(path)!r} is not: {finding}; "
            "give another run, or another --out"
        )


def _finding(path: Path) -> str:
    for each in (path, *(path.with_name(f"{path.name}-{n}") for n in ("journal", "wal", "shm"))):
        plain = each.is_file() or each.is_dir() or not each.exists()  # a folder is told by SQLite
        if each.is_symlink() or not plain:
            return f"{each.name} is a link or no file"
    if path.exists() and path.stat().st_size > _MOST:
        return f"it holds more than {_MOST:,} bytes"
    rollback = path.with_name(f"{path.name}-journal")
    if rollback.exists():
        with rollback.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - len(_NAMES_ANOTHER)))
            if file.read() == _NAMES_ANOTHER:
                return f"{rollback.name} names another file"
    return ""
