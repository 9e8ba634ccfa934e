"""Runs ONNX models, and measures how long one call takes on a device. Makes all sessions.

One cold run says nothing: a first call took 3.5 times the warm one, and the median of the same
model moved by 8–65 % between repeats on a busy machine. So models are warmed up, then timed in
turns of a few runs, in a new random order every round. What is compared are the models of one
round, which saw the same state of the machine. The runs themselves are `compressor.device.agent`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from compressor.device import agent
from compressor.device.job import Device, Job, Settings, failure
from compressor.device.local import LocalDevice
from compressor.device.timing import Latency, Schedule, latencies
from compressor.errors import UsageError

__all__ = [
    "Measured",
    "Port",
    "Session",
    "Settings",
    "create_session",
    "measure",
    "measure_fully",
    "random_inputs",
    "run_session",
    "time_in_turns",
]
Array = NDArray[Any]
_HERE = LocalDevice()


@dataclass(frozen=True)
class Measured:
    """Latencies and where they were taken.

    Attributes:
        latencies: of each model, in order; ratios are to the first.
        device: the device's name.
        runtime: version of ONNX Runtime there; empty where the device does not tell.
        processor: what ran; empty where the device does not tell.
    """

    latencies: Mapping[str, Latency]
    device: str
    runtime: str
    processor: str


class Port(Protocol):
    """One input or output of a session."""

    @property
    def name(self) -> str:
        """Its name in the graph."""

    @property
    def shape(self) -> Sequence[int | str | None]:
        """Its dimensions; text or None where the size is free."""

    @property
    def type(self) -> str:
        """Its type as ONNX Runtime writes it, for example `tensor(float)`."""


class Session(Protocol):
    """A loaded model, as much of ONNX Runtime's session as is used here."""

    def get_inputs(self) -> Sequence[Port]:
        """Inputs in order."""

    def run(self, output_names: None, input_feed: Mapping[str, Array], /) -> Sequence[Array]:
        """All outputs in order."""

    def end_profiling(self) -> str:
        """Path of the profile; only of a session that was created for one."""


def create_session(
    model: Path | bytes,
    settings: Settings,
    *,
    profile: Path | None = None,
    written: Path | None = None,
) -> Session:
    """Loads a model on this machine; of the settings, the affinity is not used.

    Where `profile` is given, every run is noted in a file of this prefix; where `written` is, the
    graph that will be run is written there.

    Raises:
        MeasureError: the file is missing or is not a model that ONNX Runtime can load.
        UsageError: the provider is not part of this installation of ONNX Runtime.
    """
    files: dict[str, object] = {}
    if profile is not None:
        files |= {"enable_profiling": True, "profile_file_prefix": str(profile)}
    if written is not None:
        files |= {"optimized_model_filepath": str(written)}
    with _reported():
        session = agent.create_session(
            model if isinstance(model, bytes) else str(model),
            threads=settings.threads,
            provider=settings.provider,
            optimisation=settings.optimisation,
            files=files,
        )
    return cast(Session, session)


def run_session(session: Session, inputs: Sequence[Array]) -> list[Array]:
    """Outputs of one call; `inputs` in the order of the model's own.

    Raises:
        MeasureError: number, shape or type of the inputs do not fit, or the run fails.
    """
    with _reported():
        return agent.run_session(session, inputs)


def random_inputs(
    session: Session,
    rng: np.random.Generator,
    *,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> list[Array]:
    """Inputs of the model's own shapes and types.

    A free first dimension takes `batch`; a fixed one stays. Integers are 0 or 1, which any
    table of embeddings has.

    Raises:
        UsageError: another dimension is free and `shapes` does not give the input's shape.
        MeasureError: an input has a type that numpy does not know.
    """
    with _reported():
        return agent.random_inputs(session, rng, batch=batch, shapes=dict(shapes or {}))


def measure(
    models: Mapping[str, Path | bytes],
    settings: Settings,
    *,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    device: Device = _HERE,
    memory: bool = False,
) -> dict[str, Latency]:
    """Latency of each model, in the order given; ratios are to the first.

    All models are timed in turns against each other, so that a machine that slows down slows
    all of them. Takes about `settings.schedule.seconds`, longer only where the fewest allowed
    rounds take longer; with `memory`, also a process on the device for each model.

    Raises:
        MeasureError: a model is missing, cannot be loaded or fails to run; it is named.
        UsageError: no models, settings that the device cannot have, an input with a free
            dimension that `shapes` does not fix, or a batch size that a model's inputs do not
            take.
        DeviceError: the device cannot be reached, hangs, or gives nonsense.
    """
    job = Job(models, settings, batch, shapes or {}, seed, memory)
    return dict(measure_fully(job, device).latencies)


def measure_fully(job: Job, device: Device = _HERE) -> Measured:
    """Like `measure`, with the device, its processor and its version of ONNX Runtime."""
    if not job.models:
        raise UsageError("measure needs at least one model, but got none")
    taken = device.take(job)
    found = {
        name: replace(latency, memory_bytes=taken.memory.get(name))
        for name, latency in latencies(taken.turns).items()
    }
    return Measured(found, device.name, taken.runtime, taken.processor)


def time_in_turns(
    runners: Mapping[str, Callable[[], object]],
    schedule: Schedule,
    *,
    clock: Callable[[], float] = time.perf_counter,
    rng: np.random.Generator,
) -> dict[str, Latency]:
    """Latency of each function, in the order given; ratios are to the first.

    Each is warmed up first. Then every round lets each of them run once in random order, so that
    neither a slower machine nor a place in the order favours any of them.
    """
    turns = agent.time_runners(list(runners.values()), asdict(schedule), clock, rng)
    return latencies(dict(zip(runners, turns, strict=True)))


@contextmanager
def _reported() -> Iterator[None]:
    """Turns the agent's errors into those of `compressor.errors`."""
    try:
        yield
    except agent.AgentError as error:
        raise failure(vars(error), ()) from error
