"""What the journal, the progress display and the report add to a run, in time.

    python -m benchmarks.overhead --evaluations 200 --pairs 5

Compresses the digits sample with a score of some milliseconds, with everything that a user gets and
without journal, display and report, in turns. Two answers: the processor time of whole runs, which
other programs hardly change, and the wall time spent inside calls of these three, waiting for the
disk included, as a share of the search and the report without them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from torch import nn

import compressor
from benchmarks.support import environment, sample
from cli.progress import PlainLines, watching
from compressor.device.timing import Schedule
from compressor.progress import Event, silent
from compressor.run import delivery
from compressor.search.journal import Journal

# What a run writes to its journal; what it reads from it stays, and finds nothing.
_WRITES = ("record", "put", "record_cost")
_BUDGET = "madds=40%"


@dataclass
class Clock:
    """Seconds inside the functions that it was put around, by name."""

    spent: dict[str, float] = field(default_factory=dict)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **how: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **how)
            finally:
                self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - start

        return timed


def run(evaluations: int, *, bare: bool) -> dict[str, Any]:
    """One compression.

    Returns:
        seconds of the search and the report together (`work`), of the processor for the whole run
        (`cpu`), of a score (`score`), and inside journal, display and report.
    """
    target, clock, scores = sample("digits"), Clock(), Clock()
    data = target.validation_data()

    def score(model: nn.Module) -> float:
        with torch.inference_mode():
            hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in data)
        return hits / sum(len(y) for _, y in data)

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(delivery, "_FINAL", Schedule(rounds=6, seconds=0.1)))
        for name in _WRITES:
            method = (
                (lambda *_, **__: None) if bare else clock.around("journal", getattr(Journal, name))
            )
            stack.enter_context(mock.patch.object(Journal, name, method))
        report = (lambda *_: None) if bare else clock.around("report", delivery.write_report)
        stack.enter_context(mock.patch.object(delivery, "write_report", report))
        progress = silent if bare else clock.around("progress", stack.enter_context(shown()))
        start = time.process_time()
        result = compressor.compress(
            target.build_model(), target.example_input(), budget=_BUDGET,
            calibration=target.calibration_data(), out=Path(folder) / "run",
            score=scores.around("score", score), evaluations=evaluations, progress=progress,
        )  # fmt: skip
        cpu = time.process_time() - start
    stages = result.summary.stages
    return {
        "cpu": cpu,
        "work": stages["search"] + clock.spent.get("report", 0.0),
        "whole": result.summary.seconds,
        "score": scores.spent["score"] / evaluations,
        "inside": dict(clock.spent),
        "best": result.summary.best.score,
    }


@contextlib.contextmanager
def shown() -> Iterator[Callable[[Event], None]]:
    """The display of a terminal of 120 columns, written to nowhere."""
    with Path("/dev/null").open("w", encoding="utf-8") as nowhere:
        console = Console(file=nowhere, force_terminal=True, width=120)
        with watching(console) as progress:
            assert not isinstance(progress, PlainLines)  # noqa: S101  (the dearer display)
            yield progress


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run(10, bare=True)  # imports, weights, and the report's library
    run(10, bare=False)
    pairs = []
    for number in range(options.pairs):
        order = (True, False) if number % 2 else (False, True)
        rows = {bare: run(options.evaluations, bare=bare) for bare in order}
        pairs.append((rows[True], rows[False]))
        print(json.dumps({"without": rows[True], "with": rows[False]}), flush=True)
    without = statistics.median(row["cpu"] for row, _ in pairs)
    full = statistics.median(row["cpu"] for _, row in pairs)
    inside = [sum(row["inside"].values()) for _, row in pairs]
    shares = [took / (row["work"] - took) for took, (_, row) in zip(inside, pairs, strict=True)]
    print(
        f"processor, whole run, {options.evaluations} evaluations: {without:.2f} s without, ",
        end="",
    )
    print(f"{full:.2f} s with journal, display and report: {full / without - 1:+.1%}")
    for name in pairs[0][1]["inside"]:
        print(f"  in the {name}: {statistics.median(r['inside'][name] for _, r in pairs):.3f} s")
    print(f"inside all three: {statistics.median(inside):.3f} s, {statistics.median(shares):.1%}")
    print(f"one score: {1e3 * statistics.median(r['score'] for r, _ in pairs):.1f} ms")
    print(json.dumps(environment()))


if __name__ == "__main__":
    main()
