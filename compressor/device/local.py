"""The device `local`: this machine, and for the timing this very process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compressor.device import agent
from compressor.device.job import Job, Readings, Settings, answers, failure, new_mark
from compressor.errors import MeasureError

LOCAL = "local"


@dataclass(frozen=True)
class LocalDevice:
    """Times models here; satisfies `compressor.device.job.Device`.

    Attributes:
        clock: seconds from any beginning.
        trial: seconds that each model may take to be loaded and run once in a process of its own,
            before it is in this one, and then all of them to be timed; None sets no limit. For
            models of others: what asks for endless time or memory, or makes ONNX Runtime crash, is
            then an error.
    """

    clock: Callable[[], float] = time.perf_counter
    trial: float | None = None

    @property
    def name(self) -> str:
        """`local`."""
        return LOCAL

    def check(self, settings: Settings) -> None:
        """Raises `UsageError` unless ONNX Runtime has the provider and the system the cores."""
        self.take(Job({}, settings))

    def take(self, job: Job) -> Readings:
        """Times the models of a job in this process; peak memory in one process each.

        Raises:
            MeasureError: a model is missing, cannot be loaded or fails to run; it is named.
            UsageError: the settings are not possible here.
        """
        tried = {} if self.trial is None else _memory(job, self.trial)
        names = list(job.models)
        models = [m if isinstance(m, bytes) else str(m) for m in job.models.values()]
        try:
            asked = job.to_json("", [])
            if self.trial is not None:
                asked["schedule"]["limit"] = max(self.trial, job.settings.schedule.seconds)
            turns = agent.run_job(models, asked, self.clock)
        except agent.AgentError as error:
            raise failure(vars(error), names) from error
        about = agent.facts()
        arrays = {n: np.asarray(t, dtype=np.float64) for n, t in zip(names, turns, strict=True)}
        memory = (tried or _memory(job)) if job.memory else {}
        return Readings(arrays, about["runtime"], about["processor"], memory)


def _memory(job: Job, limit: float | None = None) -> dict[str, int]:
    """Peak memory of each model in bytes, in a fresh process each, which may take so long."""
    mark = new_mark()
    with tempfile.TemporaryDirectory() as scratch:
        # Beside its own code, not in this package: its modules have names of Python's own.
        shutil.copyfile(agent.__file__, Path(scratch, "agent.py"))
        files = [
            _file(model, Path(scratch, f"{i}.onnx")) for i, model in enumerate(job.models.values())
        ]
        Path(scratch, "job.json").write_text(json.dumps(job.to_json(mark, files)))
        return {
            name: _peak(scratch, i, list(job.models), (mark, limit))
            for i, name in enumerate(job.models)
        }


def _file(model: Path | bytes, place: Path) -> str:
    """A file stays where it is: weights may lie beside it."""
    if isinstance(model, Path):
        return str(model.resolve())
    place.write_bytes(model)
    return str(place)


def _peak(scratch: str, index: int, names: list[str], how: tuple[str, float | None]) -> int:
    command = [sys.executable, str(Path(scratch, "agent.py")), scratch, str(index)]
    mark, limit = how
    try:
        done = subprocess.run(  # noqa: S603  (our own program)
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            check=False, timeout=limit, env={**os.environ, "TMPDIR": scratch},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise MeasureError(
            f"model {names[index]!r}: loading it and running it once must end within {limit:g} s, "
            "but did not; allow more with --timeout"
        ) from error
    for answer in answers(done.stdout, mark):
        if "error" in answer:
            raise failure(answer["error"], names)
        return int(answer["peak"])
    if done.returncode < 0:
        reason = f"the program was ended by signal {-done.returncode}"
    else:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    raise MeasureError(f"model {names[index]!r}: it cannot be loaded and run once: {reason:.300}")
