"""A limit on the time and the memory that reading a network may take."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from compressor.errors import AdapterError

_STEP = 0.2
_PAGES = Path("/proc/self/statm")
_T = TypeVar("_T")


class _Over(BaseException):
    """Ends a call from outside; no `except Exception` of other people's code holds it up."""


@dataclass(frozen=True)
class Limits:
    """What following the channels of a network may take.

    Attributes:
        seconds: of time.
        memory: bytes beyond what the process holds at the start; not held where the system does
            not tell how much that is (it does on Linux).
    """

    seconds: float = 120.0
    memory: int = 4 << 30

    def watch(self, clock: Callable[[], float] = time.monotonic) -> Watch:
        """From now on."""
        return Watch(self, clock() + self.seconds, resident() + self.memory, clock)


USUAL = Limits()


@dataclass(frozen=True)
class Watch:
    """Limits that are running.

    Attributes:
        limits: these.
        end: by the clock.
        most: bytes that the process may hold.
        clock: in seconds.
    """

    limits: Limits
    end: float
    most: int
    clock: Callable[[], float]

    def reason(self) -> str:
        """Which limit is passed; empty for none."""
        if self.clock() > self.end:
            return f"following its channels takes longer than {self.limits.seconds:g} s"
        if resident() > self.most:
            return f"following its channels takes more than {self.limits.memory >> 20} MiB"
        return ""

    def check(self) -> None:
        """Raises `AdapterError` where a limit is passed."""
        reason = self.reason()
        if reason:
            raise AdapterError(reason)


def within(limits: Limits, call: Callable[[], _T]) -> _T:
    """Runs other people's Python code, which is ended where it passes a limit.

    Raises:
        AdapterError: it was ended. What it worked on is to be thrown away then.
    """
    ending = _Ending(limits.watch())
    try:
        try:
            return call()
        finally:
            ending.done()
    except _Over:
        ending.done()
        raise AdapterError(ending.reason) from None


class _Ending:
    """Raises `_Over` in the thread that made this, again and again until it is done."""

    def __init__(self, watch: Watch) -> None:
        """Starts."""
        self.reason = ""
        self._watch, self._thread = watch, ctypes.c_ulong(threading.get_ident())
        self._lock, self._done = threading.Lock(), threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def done(self) -> None:
        """Stops; nothing is raised from here on."""
        with self._lock:
            self._done.set()
            ctypes.pythonapi.PyThreadState_SetAsyncExc(self._thread, None)

    def _run(self) -> None:
        while not self._done.wait(_STEP):
            self.reason = self.reason or self._watch.reason()
            with self._lock:
                if self.reason and not self._done.is_set():
                    error = ctypes.py_object(_Over)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(self._thread, error)


def resident() -> int:
    """Bytes that the process holds in memory; 0 where the system does not tell."""
    try:
        pages = int(_PAGES.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * mmap.PAGESIZE
