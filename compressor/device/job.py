"""What a device is asked to measure, and what it answers. Knows no ONNX and no torch."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compressor.device.timing import Schedule
from compressor.errors import CompressorError, DeviceError, MeasureError, UsageError
from compressor.untrusted import parse_json

OPTIMISATIONS = ("disabled", "basic", "extended", "all")
_KINDS: Mapping[str, type[CompressorError]] = {
    "usage": UsageError,
    "model": MeasureError,
    "missing": DeviceError,
}
_SHOWN = 200  # characters of a device's own words that a message quotes


@dataclass(frozen=True)
class Settings:
    """How models are run and timed.

    Attributes:
        threads: threads within one operator; operators never run side by side.
        provider: ONNX Runtime's execution provider.
        schedule: warm-up, turns and the time that may be spent.
        optimisation: how far ONNX Runtime may change graphs, one of `OPTIMISATIONS`.
        affinity: cores that the run is kept on; any where there are none.
    """

    threads: int = 1
    provider: str = "CPUExecutionProvider"
    schedule: Schedule = field(default_factory=Schedule)
    optimisation: str = "all"
    affinity: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UsageError(f"threads must be at least 1, but got {self.threads}")
        if self.optimisation not in OPTIMISATIONS:
            raise UsageError(
                f"the optimisation level must be one of {', '.join(OPTIMISATIONS)}, but got "
                f"{self.optimisation!r}"
            )
        if min(self.affinity, default=0) < 0 or len(set(self.affinity)) < len(self.affinity):
            got = ", ".join(map(str, self.affinity))
            raise UsageError(f"affinity must be different cores, counted from 0, but got {got}")


@dataclass(frozen=True)
class Job:
    """Models that are to be timed against each other.

    Attributes:
        models: name to file or content, the reference first.
        settings: how they are run.
        batch: size of a first dimension that is free.
        shapes: shapes of inputs by name, where more than the batch is free.
        seed: of the made-up inputs and of the order in each round.
        memory: whether the peak memory of each model is wanted too.
    """

    models: Mapping[str, Path | bytes]
    settings: Settings
    batch: int = 1
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    seed: int = 0
    memory: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"the batch size must be at least 1, but got {self.batch}")

    def to_json(self, mark: str, files: Sequence[str]) -> dict[str, Any]:
        """What `compressor.device.agent` reads; the files stand for the models, in order."""
        settings = self.settings
        return {
            "mark": mark,
            "models": list(files),
            "session": {
                "threads": settings.threads,
                "provider": settings.provider,
                "optimisation": settings.optimisation,
            },
            "schedule": asdict(settings.schedule),
            "affinity": list(settings.affinity),
            "batch": self.batch,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Readings:
    """What a device measured.

    Attributes:
        turns: seconds of every timed run of each model, `[rounds, runs]`, in the job's order.
        runtime: version of ONNX Runtime there; empty where the device does not tell.
        processor: what ran; empty where the device does not tell.
        memory: peak memory of each model in bytes, where it was asked for.
    """

    turns: Mapping[str, NDArray[np.float64]]
    runtime: str = ""
    processor: str = ""
    memory: Mapping[str, int] = field(default_factory=dict)


class Device(Protocol):
    """Where models are timed.

    Both methods raise `DeviceError` where the device cannot be reached, hangs or gives nonsense,
    and `UsageError` where it cannot do what the settings say.
    """

    @property
    def name(self) -> str:
        """What tells it from other devices, as a user would write it; a run keeps to one."""

    def check(self, settings: Settings) -> None:
        """Returns if the device can be reached and has what the settings need."""

    def take(self, job: Job) -> Readings:
        """Times the models of a job.

        Raises:
            MeasureError: a model is missing, cannot be loaded or fails to run; it is named.
        """


def new_mark() -> str:
    """The beginning of an answer's line, which no other output has by chance."""
    return f"compressor-{secrets.token_hex(8)} "


def answers(output: str, mark: str) -> list[dict[str, Any]]:
    """The answers in a program's output, in order.

    Raises:
        DeviceError: a marked line holds no JSON object.
    """
    found = []
    for line in output.splitlines():
        if line.startswith(mark):
            try:
                answer = parse_json(line[len(mark) :])
            except ValueError as error:
                raise DeviceError(f"an answer must be JSON, but got {line:.{_SHOWN}}") from error
            if not isinstance(answer, dict):
                raise DeviceError(f"an answer must be an object, but got {line:.{_SHOWN}}")
            found.append(answer)
    return found


def readings(job: Job, found: Sequence[Mapping[str, Any]]) -> Readings:
    """What the answers to a job say: first the times, then the memory of each model.

    Raises:
        CompressorError: the error that an answer tells.
        DeviceError: the answers do not have the form of the job.
    """
    names = list(job.models)
    for answer in found:
        if "error" in answer:
            raise failure(answer["error"], names)
    if len(found) != 1 + len(names) * job.memory:
        raise DeviceError(f"the job has {len(names)} models, but {len(found)} answers came")
    try:
        turns = [np.asarray(each, dtype=np.float64) for each in found[0]["turns"]]
        memory = [int(answer["peak"]) for answer in found[1:]]
        about = {key: str(found[0][key]) for key in ("runtime", "processor")}
        by_name = dict(zip(names, turns, strict=True))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DeviceError(f"an answer of another form came: {error!r:.{_SHOWN}}") from error
    if any(len({t.shape for t in turns}) > 1 or not _times(t) for t in turns):
        raise DeviceError("times must be finite, and as many for each model, but they are not")
    return Readings(by_name, **about, memory=dict(zip(names, memory, strict=job.memory)))


def _times(values: NDArray[np.float64]) -> bool:
    whole = values.ndim == 2 and values.size > 0
    return whole and bool(np.isfinite(values).all() and (values >= 0).all())


def failure(told: object, names: Sequence[str]) -> CompressorError:
    """The error that an agent tells of; the model is named."""
    told = told if isinstance(told, dict) else {}
    kind, index = _KINDS.get(str(told.get("kind"))), told.get("model")
    if kind is None:
        return DeviceError(f"an error of another form came: {told!r:.{_SHOWN}}")
    message = str(told.get("message"))
    if kind is DeviceError:
        message = f"the device needs Python with numpy and onnxruntime, but says: {message}"
    if isinstance(index, int) and 0 <= index < len(names):
        message = f"model {names[index]!r}: {message}"
    return kind(message)


def job_files(job: Job, mark: str) -> dict[str, Path | bytes]:
    """Everything that the agent needs, by names that are safe in any shell: itself, job, models.

    Raises:
        MeasureError: a model is not there.
    """
    for name, model in job.models.items():
        if isinstance(model, Path) and not model.is_file():
            raise MeasureError(f"model {name!r}: there is no file {str(model)!r}")
    models = {f"model-{i}.onnx": model for i, model in enumerate(job.models.values())}
    text = json.dumps(job.to_json(mark, list(models)), allow_nan=False)
    agent = Path(__file__).with_name("agent.py")
    return {"agent.py": agent, "job.json": text.encode(), **models}
