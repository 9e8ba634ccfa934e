"""What runs on the device: loads ONNX models, times them in turns, hands the raw times back.

Complete in itself: it needs Python 3.8, numpy and onnxruntime, and nothing of this project.
A machine behind `ssh://` gets a copy of this very file, `local` imports it.

As a program, `agent.py FOLDER` reads `FOLDER/job.json` and prints one line: the job's mark, then
`{"turns": …}` or `{"error": …}` as JSON. `agent.py FOLDER 0` gives `{"peak": …}` instead, the peak
memory of model 0: a peak belongs to a whole process, so each model needs one of its own.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Callable, Iterator, Sequence  # noqa: UP035  (Python 3.8)

# ONNX Runtime 1.31 notes the machine, the program and each session in ~/.cache, and sends that to
# its maker. Whoever wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_missing = ""
try:
    import numpy as np
    import onnxruntime as ort
except ImportError as missing:
    if __name__ != "__main__":
        raise
    _missing = str(missing)  # told as the answer to the job

_FATAL = 4  # ONNX Runtime's level for messages; what goes wrong is raised, not printed
_WINDOW = 5  # warm-up: two neighbouring windows of this many runs are compared
_STABLE = 0.05  # … and their medians may differ by this share
_TYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
Runner = Callable[[], object]
Clock = Callable[[], float]


class AgentError(Exception):
    """What a device cannot do.

    Attributes:
        kind: "usage" (it was asked for what it cannot do), "model" (a model cannot be loaded or
            run) or "missing" (it lacks numpy or onnxruntime).
        model: index of the model that it is about, or None.
    """

    def __init__(self, kind: str, message: str, model: int | None = None) -> None:
        super().__init__(message)
        self.kind, self.message, self.model = kind, message, model


def check_provider(provider: str) -> None:
    """Raises a "usage" error unless this installation of ONNX Runtime has the provider."""
    available = ort.get_available_providers()
    if provider not in available:
        rule = f"provider must be one of {', '.join(available)}, but got {provider!r}"
        raise AgentError("usage", f"{rule}; another build of onnxruntime may bring it")


def create_session(
    model: str | bytes, *, threads: int, provider: str, optimisation: str, files: Any = None
) -> Any:
    """Loads a model from a path or memory; `files` are further options of the session."""
    check_provider(provider)
    name = "a model in memory" if isinstance(model, bytes) else model
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    level = "DISABLE_ALL" if optimisation == "disabled" else f"ENABLE_{optimisation.upper()}"
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    for option, value in (files or {}).items():
        setattr(options, option, value)
    # Sessions take turns: the idle one's threads must not keep a core busy meanwhile.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = ort.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise AgentError("model", f"ONNX Runtime cannot load {name}: {_reason(error)}") from error
    # ONNX Runtime falls back to the CPU by itself, and would then be timed under another name.
    used = session.get_providers()[0]
    if used != provider:
        message = f"ONNX Runtime could not start {provider} for {name}; it fell back to {used}"
        raise AgentError("model", message)
    return session


def random_inputs(session: Any, rng: Any, *, batch: int, shapes: dict[str, Any]) -> list[Any]:
    """Inputs of the model's own shapes and types, in order.

    A free first dimension takes `batch`; a fixed one stays. Integers are 0 or 1, to be indices.
    """
    return [_random(port, rng, batch, shapes.get(port.name)) for port in session.get_inputs()]


def run_session(session: Any, inputs: Sequence[Any]) -> list[Any]:
    """Outputs of one call; `inputs` in the order of the model's own."""
    names = [port.name for port in session.get_inputs()]
    if len(names) != len(inputs):
        message = f"the model takes {len(names)} inputs ({', '.join(names)}), but got {len(inputs)}"
        raise AgentError("model", message)
    try:
        return [np.asarray(out) for out in session.run(None, dict(zip(names, inputs)))]  # noqa: B905
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise AgentError("model", f"ONNX Runtime cannot run the model: {_reason(error)}") from error


def time_runners(
    runners: Sequence[Runner], schedule: dict[str, Any], clock: Clock, rng: Any
) -> list[list[list[float]]]:
    """Seconds of every timed run, as `[runner][round][run]`.

    Each is warmed up first. Then every round gives each of them a turn in random order, so that
    neither a slower machine nor a place in the order favours any. A turn starts with one run that
    is not timed, because the model before it has taken the processor's caches. A schedule may have
    a `limit`, seconds after which it is an error that the fewest rounds are not done.
    """
    seconds = schedule["seconds"]
    end = clock() + seconds
    over = _Over(clock, schedule.get("limit", math.inf))
    for runner in runners:
        _warm_up(runner, schedule["warmup"], seconds / 4 / len(runners), clock, over)
    turns = [partial(_turn, runner, schedule["repeats"], clock, over) for runner in runners]
    return in_rounds(turns, schedule["rounds"], end, clock, rng)


class _Over:
    """Ends a measurement whose fewest rounds take too long; asked between runs, never in one."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._seconds, self._end = clock, seconds, clock() + seconds

    def __call__(self) -> None:
        if self._clock() > self._end:
            rule = f"the measurement must end within {self._seconds:g} s, but would take longer"
            raise AgentError("model", f"{rule}; allow more with --timeout")


def in_rounds(
    turns: Sequence[Callable[[], list[float]]], rounds: int, end: float, clock: Clock, rng: Any
) -> list[list[list[float]]]:
    """What the turns return, as `[turn][round]`: at least `rounds`, none starts after `end`."""
    taken: list[list[list[float]]] = [[] for _ in turns]
    done = 0
    while done < rounds or clock() < end:
        for index in rng.permutation(len(turns)):
            taken[index].append(turns[index]())
        done += 1
    return taken


def run_job(models: Sequence[Any], job: dict[str, Any], clock: Clock) -> list[list[list[float]]]:
    """Times all models of a job, in the affinity that it asks for; nothing where there are none."""
    check_provider(job["session"]["provider"])
    with pinned(job["affinity"]):
        rng = np.random.default_rng(job["seed"])
        runners = [_runner(index, model, job, rng) for index, model in enumerate(models)]
        return time_runners(runners, job["schedule"], clock, rng) if runners else []


@contextlib.contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Keeps this thread, and threads that it starts, on these cores; on any if there are none."""
    if not cores:
        yield
        return
    if not hasattr(os, "sched_setaffinity"):
        raise AgentError("usage", f"{platform.system()} cannot keep a program on chosen cores")
    before = os.sched_getaffinity(0)
    if not before.issuperset(cores):
        have, got = (", ".join(map(str, sorted(some))) for some in (before, cores))
        raise AgentError("usage", f"affinity must be among the cores {have}, but got {got}")
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def facts() -> dict[str, str]:
    """Version of ONNX Runtime and the processor."""
    named = re.search(r"^(?:model name|Model)\s*: (.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    other = platform.processor() or platform.machine()
    return {"runtime": ort.__version__, "processor": named[1] if named else other}


def _text(path: str) -> str:  # of a file that only Linux has
    return Path(path).read_text("utf-8", "replace") if Path(path).is_file() else ""


def _peak_so_far() -> int:
    """Largest resident memory of this process in bytes."""
    # Not getrusage first: Linux hands its peak down from the process that started this one.
    held = re.search(r"^VmHWM:\s*(\d+) kB$", _text("/proc/self/status"), re.MULTILINE)
    if held:
        return int(held[1]) * 1024
    try:
        import resource  # noqa: PLC0415  (not everywhere)
    except ImportError as error:
        raise AgentError("usage", f"{platform.system()} does not tell peak memory") from error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _bound_memory() -> None:
    """No more than what is free: a few bytes of a graph can ask for more than any machine has."""
    free = re.search(r"^MemAvailable:\s*(\d+) kB$", _text("/proc/meminfo"), re.MULTILINE)
    own = re.search(r"^VmSize:\s*(\d+) kB$", _text("/proc/self/status"), re.MULTILINE)
    if free and own:
        import resource  # noqa: PLC0415  (not everywhere)

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = (int(free[1]) + int(own[1])) * 1024
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _memory_of(model: str, index: int, job: dict[str, Any]) -> int:
    """Largest resident memory in bytes, less the largest before the model was loaded."""
    with contextlib.suppress(OSError):  # Linux, where allowed: imports may have had a higher peak
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _peak_so_far()
    with pinned(job["affinity"]):
        _runner(index, model, job, np.random.default_rng(job["seed"]))
    return max(_peak_so_far() - before, 0)


def _runner(index: int, model: str | bytes, job: dict[str, Any], rng: Any) -> Runner:
    """One call with as little of our own work inside the timed stretch as possible."""
    try:
        session = create_session(model, **job["session"])
        _require_batch(session, job["batch"], job["shapes"])
        inputs = random_inputs(session, rng, batch=job["batch"], shapes=job["shapes"])
        run_session(session, inputs)
    except AgentError as error:
        raise AgentError(error.kind, error.message, index) from error
    names = [port.name for port in session.get_inputs()]
    return partial(session.run, None, dict(zip(names, inputs)))  # noqa: B905  (Python 3.8)


def _require_batch(session: Any, batch: int, shapes: dict[str, Any]) -> None:
    """A time at batch 1 must not be reported as one at another batch size."""
    first = [p.shape[0] for p in session.get_inputs() if p.name not in shapes and len(p.shape)]
    if batch > 1 and first and all(isinstance(s, int) and s != batch for s in first):
        rule = f"the model takes batches of {first[0]}, but the batch size asked for is {batch}"
        raise AgentError("usage", f"{rule}; export it with a free batch size")


def _warm_up(
    runner: Runner, most: int, seconds: float, clock: Clock, over: Callable[[], None]
) -> None:
    """Runs until the median of the last few runs is that of the few before them."""
    start = clock()
    taken: list[float] = []
    while len(taken) < most and (len(taken) < 3 or clock() - start < seconds):
        over()
        taken.append(_timed(runner, clock))
        if len(taken) >= 2 * _WINDOW:
            before = median(taken[-2 * _WINDOW : -_WINDOW])
            if abs(median(taken[-_WINDOW:]) - before) <= _STABLE * before:
                return


def _turn(runner: Runner, repeats: int, clock: Clock, over: Callable[[], None]) -> list[float]:
    over()
    runner()
    taken = []
    for _ in range(repeats):
        taken.append(_timed(runner, clock))
        over()
    return taken


def _timed(runner: Runner, clock: Clock) -> float:
    start = clock()
    runner()
    return clock() - start


def _random(port: Any, rng: Any, batch: int, shape: Sequence[int] | None) -> Any:
    name = port.type.partition("(")[2].rstrip(")")
    dtype = {"float": "float32", "double": "float64"}.get(name, name)
    if dtype not in _TYPES:
        raise AgentError("model", f"input {port.name!r} of type {port.type} cannot be made up")
    sizes = tuple(shape) if shape is not None else _sizes(port, batch)
    try:
        if dtype.startswith("float"):  # made as small as can be: they count in the peak memory
            made = rng.standard_normal(sizes, dtype="float64" if dtype == "float64" else "float32")
            return made.astype(dtype, copy=False)
        return rng.integers(0, 2, sizes, dtype=dtype)
    except (MemoryError, ValueError, OverflowError) as error:
        rule = f"an input must fit into memory, but {port.name!r} has the shape {list(sizes)}"
        raise AgentError("model", rule) from error


def _sizes(port: Any, batch: int) -> tuple[int, ...]:
    sizes = []
    for dim, size in enumerate(port.shape):
        if isinstance(size, int):
            sizes.append(size)
        elif dim == 0:
            sizes.append(batch)
        else:
            rule = f"input {port.name!r} has the shape {list(port.shape)}: dimension {dim} is free"
            say = f"shapes={{{port.name!r}: (1, 3, 224, 224)}} or --shape {port.name}=1x3x224x224"
            raise AgentError("usage", f"{rule}; give its shape, for example {say}")
    return tuple(sizes)


def _reason(error: Exception) -> str:
    """The first line of ONNX Runtime's message, without its own error code."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rsplit("[ONNXRuntimeError] : ", 1)[-1]


def _answer(folder: str, job: dict[str, Any], index: int | None) -> dict[str, Any]:
    """What the job, or the question for one model's memory, comes to."""
    if _missing:
        raise AgentError("missing", _missing)
    models = [str(Path(folder, name)) for name in job["models"]]
    if index is not None:
        return {"peak": _memory_of(models[index], index, job)}
    return {"turns": run_job(models, job, time.perf_counter), **facts()}


def main(arguments: Sequence[str]) -> None:
    """Does the job of the folder and prints its answer."""
    folder, index = arguments[0], int(arguments[1]) if len(arguments) > 1 else None
    job = json.loads(Path(folder, "job.json").read_text(encoding="utf-8"))
    _bound_memory()
    try:
        answer = _answer(folder, job, index)
    except AgentError as error:
        answer = {"error": vars(error)}
    # On a line of its own, whatever was printed before it.
    print("\n" + job["mark"] + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
