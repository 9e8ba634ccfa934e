"""Runs ONNX models and measures how long one call takes. The only place that makes sessions.

One cold run says nothing: a first call took 3.5 times the warm one, and the median of the same
model moved by 8–65 % between repeats on a busy machine. So models are warmed up, then timed in
turns of a few runs, in a new random order every round. What is compared are the models of one
round, which saw the same state of the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from compressor.errors import MeasureError, UsageError
from compressor.timing import Latency, Schedule, time_in_turns

Array = NDArray[Any]

_FATAL = 4  # ONNX Runtime's level for messages; what goes wrong is raised, not printed
_DTYPES: Mapping[str, type] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Settings:
    """How models are run and timed.

    Attributes:
        threads: threads within one operator; operators never run side by side.
        provider: ONNX Runtime's execution provider.
        schedule: warm-up, turns and the time that may be spent.
    """

    threads: int = 1
    provider: str = "CPUExecutionProvider"
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UsageError(f"threads must be at least 1, but got {self.threads}")


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
    model: Path | bytes, settings: Settings, *, profile: Path | None = None
) -> Session:
    """Loads a model; where `profile` is given, every run is noted in a file of this prefix.

    Raises:
        MeasureError: the file is missing or is not a model that ONNX Runtime can load.
        UsageError: the provider is not part of this installation of ONNX Runtime.
    """
    check_provider(settings.provider)
    name = "a model in memory" if isinstance(model, bytes) else str(model)
    options = _options(settings.threads)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        session = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=[settings.provider],
        )
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise MeasureError(f"ONNX Runtime cannot load {name}: {_reason(error)}") from error
    # ONNX Runtime falls back to the CPU by itself, and would then be timed under another name.
    if session.get_providers()[0] != settings.provider:
        raise MeasureError(
            f"ONNX Runtime could not start {settings.provider} for {name}; "
            f"it fell back to {session.get_providers()[0]}"
        )
    return session  # type: ignore[no-any-return]


def check_provider(provider: str) -> None:
    """Raises `UsageError` unless this installation of ONNX Runtime has the provider."""
    available = ort.get_available_providers()
    if provider not in available:
        raise UsageError(
            f"provider must be one of {', '.join(available)}, but got {provider!r}; "
            "another build of onnxruntime may bring it"
        )


def run_session(session: Session, inputs: Sequence[Array]) -> list[Array]:
    """Outputs of one call; `inputs` in the order of the model's own.

    Raises:
        MeasureError: number, shape or type of the inputs do not fit, or the run fails.
    """
    names = [port.name for port in session.get_inputs()]
    if len(names) != len(inputs):
        raise MeasureError(
            f"the model takes {len(names)} inputs ({', '.join(names)}), but got {len(inputs)}"
        )
    try:
        return [np.asarray(out) for out in session.run(None, dict(zip(names, inputs, strict=True)))]
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise MeasureError(f"ONNX Runtime cannot run the model: {_reason(error)}") from error


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
    return [
        _random(port, rng, batch, (shapes or {}).get(port.name)) for port in session.get_inputs()
    ]


def measure(
    models: Mapping[str, Path | bytes],
    settings: Settings,
    *,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> dict[str, Latency]:
    """Latency of each model, in the order given; ratios are to the first.

    All models are timed in turns against each other, so that a machine that slows down slows
    all of them. Takes about `settings.schedule.seconds`, longer only where the fewest allowed
    rounds take longer.

    Raises:
        MeasureError: a model is missing, cannot be loaded or fails to run; it is named.
        UsageError: no models, an unknown provider, or an input with a free dimension that
            `shapes` does not fix.
    """
    if not models:
        raise UsageError("measure needs at least one model, but got none")
    rng = np.random.default_rng(seed)
    runners: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        try:
            session = create_session(model, settings)
            inputs = random_inputs(session, rng, batch=batch, shapes=shapes)
            run_session(session, inputs)
        except MeasureError as error:
            raise MeasureError(f"model {name!r}: {error}") from error
        runners[name] = _runner(session, inputs)
    return time_in_turns(runners, settings.schedule, clock=clock, rng=rng)


def _options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    # Sessions take turns: the idle one's threads must not keep a core busy meanwhile.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _runner(session: Session, inputs: Sequence[Array]) -> Callable[[], object]:
    """One call with as little of our own work inside the timed stretch as possible."""
    names = [port.name for port in session.get_inputs()]
    return partial(session.run, None, dict(zip(names, inputs, strict=True)))


def _random(port: Port, rng: np.random.Generator, batch: int, shape: Sequence[int] | None) -> Array:
    dtype = _DTYPES.get(port.type)
    if dtype is None:
        raise MeasureError(f"input {port.name!r} has type {port.type}, which cannot be made up")
    sizes = tuple(shape) if shape is not None else _sizes(port, batch)
    if np.issubdtype(dtype, np.floating):
        return rng.standard_normal(sizes).astype(dtype)
    return rng.integers(0, 2, sizes).astype(dtype)


def _sizes(port: Port, batch: int) -> tuple[int, ...]:
    sizes = []
    for dim, size in enumerate(port.shape):
        if isinstance(size, int):
            sizes.append(size)
        elif dim == 0:
            sizes.append(batch)
        else:
            raise UsageError(
                f"input {port.name!r} has the shape {list(port.shape)}: dimension {dim} is free; "
                f"give its shape, for example shapes={{{port.name!r}: (1, 3, 224, 224)}}"
            )
    return tuple(sizes)


def _reason(error: Exception) -> str:
    """The first line of ONNX Runtime's message, without its own error code."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rsplit("[ONNXRuntimeError] : ", 1)[-1]
