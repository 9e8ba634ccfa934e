"""This project, through its public function and with its defaults."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import compressor
from benchmarks.peers.protocol import Attempt, Request
from benchmarks.peers.task import Effort, Meter, Product, Task
from compressor.progress import Event


def make(task: Task, request: Request) -> Product:
    """One call of `compressor.compress`; the effort is that until the network is there."""
    watch = _Watch()
    with tempfile.TemporaryDirectory() as folder:
        result = compressor.compress(
            task.model,
            task.example,
            budget=request.budget,
            calibration=task.calibration,
            validation=task.search,
            out=Path(folder) / "run",
            evaluations=request.evaluations,
            seed=request.seed,
            score="agreement",
            progress=watch,
        )
    summary = result.summary
    effort = watch.network or watch.meter.read()
    return Product(
        result.model,
        effort,
        summary.evaluations + summary.failed,
        stages=dict(summary.stages),
        attempts=(Attempt(task.target, task.share(result.model), effort.seconds),),
        notes=(_stages(summary.stages),),
    )


class _Watch:
    """Reads the meter when the network is there: a peer neither exports nor measures."""

    def __init__(self) -> None:
        self.meter = Meter()
        self.network: Effort | None = None

    def __call__(self, event: Event) -> None:
        if event.stage == "export" and self.network is None:
            self.network = self.meter.read()
        print(event.stage, event.done, event.total, event.note, file=sys.stderr, flush=True)


def _stages(stages: Mapping[str, float]) -> str:
    told = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in stages.items())
    return f"stages: {told}; its time is without export and measure"
