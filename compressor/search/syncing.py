"""How often a journal waits for the disk. Knows no torch and no SQLite of its own.

A transaction that waits until the disk has it takes 18 ms on a virtual disk, as long as a score. In
SQLite's write-ahead mode it does not wait: once it is written, the operating system has it, so that
a process that is killed loses nothing; only a machine that loses power may lose the last ones, and
never more than those. How many is bounded here: the journal waits for the disk as soon as that
takes no more than half a per cent of the time since the last wait. At rest the file is in the plain
mode: one file that can be copied, and read where nothing can be written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

_SHARE = 0.005  # of the time that may go into waiting for the disk
_BEGIN, _SYNC, _END = (
    "PRAGMA journal_mode = WAL", "PRAGMA wal_checkpoint(PASSIVE)", "PRAGMA journal_mode = DELETE",
)  # fmt: skip


class Syncing:
    """Sets a connection's mode, and waits for the disk now and then.

    Args:
        ask: runs a statement and returns its rows.
        clock: seconds.
    """

    def __init__(
        self,
        ask: Callable[[str], Sequence[Any]],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._ask, self._clock = ask, clock
        self._ahead = False
        self._last = self._took = 0.0

    def begin(self) -> None:
        """From here on transactions do not wait; where the file system cannot do that, they do."""
        self._ahead = self._ask(_BEGIN) == [("wal",)]
        self._ask(f"PRAGMA synchronous = {'NORMAL' if self._ahead else 'FULL'}")
        self._last = self._clock()

    def wrote(self) -> None:
        """After each transaction: waits for the disk where that is due."""
        start = self._clock()
        if not self._ahead or (start - self._last) * _SHARE < self._took:
            return
        self._ask(_SYNC)
        self._last = self._clock()
        self._took = self._last - start

    def end(self) -> None:
        """Back to one plain file; whatever was written is on the disk then."""
        if self._ahead:
            self._ahead = False
            self._ask(_END)
