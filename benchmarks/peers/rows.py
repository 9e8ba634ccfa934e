"""One row after another; whatever fails is a row with the reason. Knows no torch."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.peers import protocol
from benchmarks.peers.environment import ROOT
from benchmarks.peers.protocol import JUDGED, MADE, Judged, Made, Request, Row, Timing
from compressor.device.measure import Settings, measure
from compressor.device.timing import Latency, Schedule
from compressor.errors import CompressorError

Call = Callable[[str, Path], str]
_SECONDS = 4.0  # of measuring for each network


def caller(python: Path, threads: int, limit: float) -> Call:
    """Runs a step of `benchmarks.peers.child`, and tells why it failed, or "".

    Args:
        python: of the peers' environment.
        threads: of everything in the child.
        limit: seconds after which a step is ended.
    """
    settings = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def call(step: str, folder: Path) -> str:
        command = [str(python), "-m", "benchmarks.peers.child", step, str(folder)]
        return run_child(command, folder / f"{step}.log", limit, settings)

    return call


def run_child(
    command: Sequence[str], log: Path, limit: float, settings: Mapping[str, str] | None = None
) -> str:
    """Runs a program, its words into a file; why it failed, or "" where it did not."""
    with log.open("w", encoding="utf-8") as out:
        try:
            code = subprocess.run(  # noqa: S603  (our own commands)
                command, cwd=ROOT, env=settings, stdout=out, stderr=out, timeout=limit, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return f"it was ended after {limit:.0f} s"
        except OSError as error:
            return f"it could not be started: {error}"
    if code == 0:
        return ""
    if code < 0:
        return f"signal {-code} ended it" + ("; was the memory enough?" if code == -9 else "")
    lines = [x.strip() for x in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((x[:300] for x in reversed(lines) if x), f"exit code {code}, without a word")


def make_row(request: Request, folder: Path, call: Call) -> Row:
    """Makes and judges one network in a folder of its own, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    protocol.write(folder / protocol.REQUEST, request)
    row = Row(request.method, request.budget, request.seed)
    for step in ("make", "judge"):
        reason = call(step, folder)
        row = _with_results(row, folder)
        if reason:
            return replace(row, reason=f"{step}: {reason}")
    return row


def _with_results(row: Row, folder: Path) -> Row:
    """What the children have written so far."""
    with contextlib.suppress(FileNotFoundError):
        row = replace(row, made=protocol.read(Made, folder / MADE))
        row = replace(row, judged=protocol.read(Judged, folder / JUDGED))
    return row


def with_timings(rows: Sequence[Row], folders: Sequence[Path], threads: int) -> list[Row]:
    """Times every ONNX file in turns with the others; the first row is what ratios are of."""
    files = {str(i): f / protocol.ONNX for i, f in enumerate(folders)}
    files = {i: file for i, file in files.items() if file.exists()}
    if "0" not in files:
        return list(rows)
    schedule = Schedule(rounds=20, seconds=_SECONDS * len(files))
    try:
        found = measure(files, Settings(threads, schedule=schedule))
    except CompressorError as error:
        print(f"no latency was measured: {error}", file=sys.stderr)
        return list(rows)
    return [
        replace(row, timing=_timing(found[str(i)])) if str(i) in found else row
        for i, row in enumerate(rows)
    ]


def _timing(latency: Latency) -> Timing:
    return Timing(latency.median_ms, latency.ratio, latency.ratio_low, latency.ratio_high)
