"""Hands cases to workers, starts one anew where it died, and keeps how each case ended."""

from __future__ import annotations

import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.fuzz.valid import make_valid
from benchmarks.fuzz.watch import OTHER, SLOW, Ending, Limits

_START = 120.0  # seconds for a worker's imports
_GRACE = 5.0  # beyond the limit, in which the worker ends a case itself
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Case:
    """One broken input: for which reader, and the number and seed that decide it."""

    reader: str
    number: int
    seed: int


Told = Callable[[Case, Ending], None]


def run_cases(cases: Sequence[Case], limits: Limits, workers: int, told: Told) -> None:
    """Runs all cases; `told` hears of each, one at a time, in no order."""
    todo: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in cases:
        todo.put(case)
    lock = threading.Lock()

    def tell(case: Case, ending: Ending) -> None:
        with lock:
            told(case, ending)

    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        valid = Path(folder) / "valid"
        make_valid(valid)
        threads = [
            threading.Thread(target=_work, args=(todo, valid, Path(folder) / str(n), limits, tell))
            for n in range(workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _work(
    todo: queue.SimpleQueue[Case], valid: Path, root: Path, limits: Limits, tell: Told
) -> None:
    while not todo.empty():
        with _worker(valid, root, limits) as process:
            while True:
                try:
                    case = todo.get_nowait()
                except queue.Empty:
                    return
                ending = _asked(process, case, limits)
                tell(case, ending)
                if process.poll() is not None:
                    break


@contextmanager
def _worker(valid: Path, root: Path, limits: Limits) -> Iterator[subprocess.Popen[bytes]]:
    shutil.rmtree(root, ignore_errors=True)
    words = [sys.executable, "-B", "-m", "benchmarks.fuzz.worker"]
    said = [str(valid), str(root), str(limits.seconds), str(limits.memory)]
    process = subprocess.Popen(  # noqa: S603  (our own program)
        [*words, *said], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, cwd=_ROOT, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)},
    )  # fmt: skip
    try:
        if _line(process, _START) != b"ready\n":
            raise RuntimeError("the worker did not start")
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the worker and what it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _asked(process: subprocess.Popen[bytes], case: Case, limits: Limits) -> Ending:
    stdin: IO[bytes] | None = process.stdin
    assert stdin is not None  # noqa: S101  (it is a pipe)
    stdin.write(f"{case.reader} {case.number} {case.seed}\n".encode())
    stdin.flush()
    line = _line(process, limits.seconds + _GRACE)
    if line is None:
        process.kill()
        process.wait()
        return Ending(SLOW, "it had to be killed")
    if not line:
        status = process.wait()
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return Ending(OTHER, f"the program died: {how}")
    return Ending(**json.loads(line))


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """What the worker says; empty where it is gone, None where it says nothing in time."""
    stdout = process.stdout
    assert stdout is not None  # noqa: S101  (it is a pipe)
    ready, _, _ = select.select([stdout], [], [], seconds)
    return stdout.readline() if ready else None
