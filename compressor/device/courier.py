"""Runs on a machine behind `ssh://` before the agent: unpacks it, runs it, leaves nothing behind.

Complete in itself like the agent: it needs Python 3.8 alone. It reads one line of JSON from
standard input (`{"size": bytes, "limit": seconds, "peaks": models}`), then a tar archive of that
size, and unpacks it into a fresh temporary folder. The agent runs there as a process of its own,
once for the times and once for each peak memory. When the time is over, or standard input ends
because whoever asked is gone, the agent and what it started are killed. The folder is removed in
any case.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

OVER = 124  # as `timeout` counts it


def run(order: dict[str, Any], archive: bytes) -> int:
    """Exit status of the first agent that failed, or 0; their output goes where ours goes."""
    end = time.monotonic() + order["limit"]
    folder = tempfile.mkdtemp(prefix="compressor-")
    try:
        threading.Thread(target=_watch, daemon=True).start()
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:  # plain files that the asking side named
                content = tar.extractfile(member)
                Path(folder, Path(member.name).name).write_bytes(content.read() if content else b"")
        status = 0
        for more in [[], *([str(i)] for i in range(order["peaks"]))]:
            status = status or _run(folder, more, end)
        return status
    finally:
        _on_signals(signal.SIG_IGN)  # nothing may keep the folder
        shutil.rmtree(folder, ignore_errors=True)


def _run(folder: str, more: list[str], end: float) -> int:
    agent = subprocess.Popen(  # noqa: S603  (our own program)
        [sys.executable, str(Path(folder, "agent.py")), folder, *more],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": folder},  # ONNX Runtime leaves a file of its own there
        start_new_session=True,  # so that everything it starts can be ended with it
    )
    try:
        status = agent.wait(max(end - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        sys.stderr.write("the time is over\n")
        return OVER
    finally:
        with contextlib.suppress(OSError):
            os.killpg(agent.pid, signal.SIGKILL)
        agent.wait()
    if status < 0:
        sys.stderr.write(f"the agent was ended by signal {-status}\n")
    return 1 if status else 0


def _watch() -> None:
    """Ends this process in order when whoever asked is gone."""
    # not sys.stdin, whose lock a thread must not hold when Python ends
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def _on_signals(act: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, act)


def _leave(*_: object) -> None:
    raise SystemExit(OVER)


def main() -> int:
    """Takes the order and the archive from standard input."""
    _on_signals(_leave)
    order = json.loads(sys.stdin.buffer.readline())
    return run(order, sys.stdin.buffer.read(order["size"]))


if __name__ == "__main__":
    sys.exit(main())
