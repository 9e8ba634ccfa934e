"""Runs one case and says how it ended: its time, its memory, and what it wrote where."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fuzz.readers import READERS, RefusedError, generator
from compressor.errors import CompressorError

SUCCESS, OURS, OTHER = "success", "our error", "other"
SLOW, LARGE, OUTSIDE = "too slow", "too large", "wrote outside"
OUTCOMES = (SUCCESS, OURS, OTHER, SLOW, LARGE, OUTSIDE)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod")


class _SlowError(BaseException):
    """The time of a case is over; nothing may take it for an error of its own."""


@dataclass(frozen=True)
class Limits:
    """What one case may take: seconds, and bytes of memory beyond what the program has."""

    seconds: float = 10.0
    memory: int = 2 << 30


@dataclass(frozen=True)
class Ending:
    """How a case ended, with what it said."""

    outcome: str
    detail: str = ""


class Sandbox:
    """A folder for each case, with places around it that must stay as they are.

    `case/` is copied from the valid inputs; `outside/`, `home/` and `tmp/` lie beside it. What is
    opened for writing anywhere else is told by Python's audit events.
    """

    def __init__(self, root: Path) -> None:
        """Makes the places and points the program at them."""
        self.case, self._around = root / "case", [root / n for n in ("outside", "home", "tmp")]
        self.root = root
        for place in self._around:
            place.mkdir(parents=True, exist_ok=True)
        (root / "outside" / "canary.txt").write_text("as it was\n", encoding="utf-8")
        (root / "outside" / "empty.txt").touch()
        os.environ.update(
            FUZZ_OUTSIDE=str(root / "outside"), HOME=str(root / "home"), TMPDIR=str(root / "tmp"),
            # made by torch and its hub, where weights that are fetched are kept for other runs
            TORCHINDUCTOR_CACHE_DIR=str(root / "cache"), TORCH_HOME=str(root / "cache" / "hub"),
        )  # fmt: skip
        tempfile.tempdir = None
        self._watching, self._strange = False, ""
        sys.addaudithook(self._audit)

    def fresh(self, source: Path | None) -> Path:
        """The folder of the next case, with a copy of the valid inputs."""
        os.chdir(self.root)
        shutil.rmtree(self.case, ignore_errors=True)
        if source is None:
            self.case.mkdir()
        else:
            shutil.copytree(source, self.case)
        os.chdir(self.case)
        return self.case

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Notes what is written in the block."""
        self._strange, self._watching = "", True
        try:
            yield
        finally:
            self._watching = False

    def seen(self) -> dict[str, tuple[object, ...]]:
        """What lies around the case, with everything that would change by a write."""
        return {str(p): _state(p) for place in self._around for p in sorted(place.rglob("*"))}

    @property
    def strange(self) -> str:
        """What was written beyond the sandbox; empty where nothing was."""
        return self._strange

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._watching or self._strange:
            return
        path = arguments[0] if arguments else None
        if event == "open":
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            if not flags & _WRITES:
                return
        elif event not in _CHANGES:
            return
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str) or path == os.devnull or path.startswith("/proc/self/"):
            return
        if not os.path.abspath(path).startswith(f"{self.root}{os.sep}"):  # noqa: PTH100  (no links)
            self._strange = f"{event} {path}"


def _state(path: Path) -> tuple[object, ...]:
    found = path.lstat()
    return found.st_mode, found.st_size, found.st_mtime_ns, found.st_ino


@contextmanager
def _limited(limits: Limits) -> Iterator[None]:
    """Bounds time, and memory beyond what the program has now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + limits.memory
    signal.signal(signal.SIGALRM, _over)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _over(*_: object) -> None:
    raise _SlowError


def run_case(
    sandbox: Sandbox, valid: Path, reader: str, number: int, seed: int, limits: Limits
) -> Ending:
    """Breaks an input and reads it."""
    found = READERS[reader]
    folder = sandbox.fresh(valid / found.folder if found.folder else None)
    read = found.prepare(folder, generator(reader, number, seed))
    before = sandbox.seen()
    with sandbox.watched():
        ending = _ending(read, limits)
    os.chdir(sandbox.root)
    after = sandbox.seen()
    if sandbox.strange or after != before:
        where = sandbox.strange or ", ".join(
            sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
        )
        _tidy(before, after)
        return Ending(OUTSIDE, f"{where}; it ended with: {ending.outcome} {ending.detail}"[:2000])
    return ending


def _tidy(before: dict[str, tuple[object, ...]], after: dict[str, tuple[object, ...]]) -> None:
    for name in sorted(after.keys() - before.keys(), reverse=True):
        path = Path(name)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def _ending(read: Callable[[], object], limits: Limits) -> Ending:
    try:
        with _limited(limits):
            read()
    except _SlowError:
        return Ending(SLOW, traceback.format_exc(limit=-4))
    except (CompressorError, RefusedError) as error:
        return Ending(OURS, f"{type(error).__name__}: {error}"[:300])
    except MemoryError:
        return Ending(LARGE, traceback.format_exc(limit=-6))
    except BaseException:  # noqa: BLE001  (whatever it is, it is told)
        return Ending(OTHER, traceback.format_exc(limit=-8))
    return Ending(SUCCESS)
