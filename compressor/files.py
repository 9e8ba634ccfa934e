"""Files as a whole or not at all, and the folder of a run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from compressor.errors import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

JOURNAL = "journal.sqlite"
NETWORK, QUANTISED, ALL_NETWORKS = "model.onnx", "model.int8.onnx", "joint.onnx"
SEVERAL = ("frontier.json", "multitask.json")
"""Files of which one is in the folder of a run for several networks."""

# What a run that was killed while it wrote leaves: never under the name of a whole file.
_LEFT = re.compile(r"\.[\w-]+(?:\.[\w-]+)*\.(?:json|onnx|safetensors|html)\.\w{8}", re.ASCII)


def networks_within(run: Path) -> tuple[str, ...]:
    """Folders of the networks inside of a run for several; none for any other folder."""
    if not any((run / name).is_file() for name in SEVERAL):
        return ()
    found = (*run.glob("*/result.json"), *run.glob("*/*/result.json"))
    return tuple(sorted(str(path.parent.relative_to(run)) for path in found))


def write_atomic(path: Path, write: Callable[[Path], object]) -> Path:
    """Calls `write` with a temporary path beside `path` and moves the result into place.

    A reader sees the old file or the new one, never half of one.

    Raises:
        RunError: the disk is full or the directory cannot be written; nothing is left behind.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # else the name may be on the disk before the content
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise RunError(
            f"{str(path)!r} cannot be written: {error.strerror or error}; free some space or "
            "choose another directory"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes a text file in UTF-8 as a whole; see `write_atomic`."""
    return write_atomic(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: object) -> Path:
    """Writes plain values as a whole; see `write_atomic`. What JSON cannot hold is refused."""
    return write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


@contextlib.contextmanager
def run_folder(out: Path) -> Iterator[Path]:
    """The folder of a run: made if it is not there, and gone again if the run never started.

    A run has started when its journal holds a score, or latencies of a device that then failed;
    whatever fails before that (a budget that cannot be met, a score that raises) leaves nothing
    behind.

    Raises:
        RunError: the folder holds something else, cannot be written, or another process works in
            it.
    """
    made: list[Path] = []
    try:
        made += _make(out)
        with _alone(out):
            _remove_left(out)
            yield out
    finally:
        _remove_empty(made)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keeps other processes from working in the folder; the system forgets it when this one ends.

    Not on Windows, and where a file system has no locks: there nobody is kept away.
    """
    if fcntl is None:
        yield
        return
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"one process works in a run directory at a time, but another works in {str(out)!r}"
                "; wait until it is done, or give another --out"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(folder)


def _make(out: Path) -> list[Path]:
    """Makes the folder; returns what was not there before, itself first."""
    made: list[Path] = []
    try:
        missing = [p for p in (out, *out.parents) if not p.exists()]
        _require_run_or_empty(out)
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            made.insert(0, folder)
        with tempfile.TemporaryFile(dir=out) as probe:
            probe.write(b"x")
            probe.flush()
    except OSError as error:
        _remove_empty(made)
        raise RunError(
            f"the run directory {str(out)!r} cannot be written: {error.strerror or error}; choose "
            "another --out"
        ) from error
    return made


def _remove_left(out: Path) -> None:
    for path in out.iterdir():
        if _LEFT.fullmatch(path.name) and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()  # only succeeds while it is empty


def _require_run_or_empty(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"--out must be a directory, but {str(out)!r} is a file")
    if out.is_dir() and any(out.iterdir()) and not (out / JOURNAL).is_file():
        raise RunError(
            f"--out must be new, empty, or a run to resume, but {str(out)!r} holds other files; "
            "choose another directory"
        )
