"""Times the parts of a network alone, each in turns with one reference part. Knows no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import MeasureError
from compressor.latency import Measurer
from compressor.latency_cache import Machine, Measured, Timed, read_measured, write_measured
from compressor.measure import Settings
from compressor.operators import Operator, model_of
from compressor.progress import Event, Progress, silent
from compressor.timing import Latency, Schedule

EMPTY = "nothing"
"""Signature of the model that does nothing: what calling a model takes, whatever is in it."""

_REFERENCE = ""
_SCHEDULE = Schedule(warmup=10, repeats=3, rounds=10, seconds=1e-3)
_WHOLE = Schedule(warmup=20, repeats=3, rounds=20, seconds=1.0)
_TURNS = 4  # whole networks that take turns with the original
_CHUNK = 8  # parts that take turns with the reference
_SURE = 0.1  # width of an interval, as a share, from which on a part is timed again
_KEPT = 25  # chunks after which what is measured is written down


@dataclass(frozen=True)
class Clockwork:
    """With what parts are measured, on which machine, and where that is kept.

    Attributes:
        measurer: times models.
        settings: threads and provider; the schedule is our own.
        machine: what is measured on.
        folder: where measured parts are kept; None keeps nothing.
    """

    measurer: Measurer
    settings: Settings
    machine: Machine
    folder: Path | None = None


def measured_parts(
    operators: Sequence[Operator], clockwork: Clockwork, progress: Progress = silent
) -> Measured:
    """The times of all operators; those that the folder's file holds are not measured again.

    Equal operators are measured once, those that only handle shapes not at all. All times are
    shares of one and the same small convolution's, which takes its turn among every few of them:
    so a machine that becomes slower or faster meanwhile, or until another day, changes nothing.

    Raises:
        MeasureError: an operator cannot be run alone.
        RunError: the file cannot be read or written.
    """
    folder = clockwork.folder
    known = read_measured(folder, clockwork.machine) if folder else None
    todo = {o.signature: o for o in operators if o.form.node}
    parts: dict[str, Timed] = dict(known.parts) if known else {}
    missing = sorted(({EMPTY} | todo.keys()) - parts.keys())
    np.random.default_rng(0).shuffle(missing)
    reference = [known.reference_ms] if known else []
    chunks = list(_chunks(missing, _CHUNK))
    for done, chunk in enumerate(chunks, 1):
        found, ms = _timed({s: _model(s, todo) for s in chunk}, clockwork)
        parts |= found
        if known is None:
            reference.append(ms)
        progress(Event("latency table", done, len(chunks), f"{len(parts)} parts timed"))
        if folder and (done % _KEPT == 0 or done == len(chunks)):
            write_measured(folder, _table(clockwork, reference, parts))
    return _table(clockwork, reference, parts)


def _table(
    clockwork: Clockwork, reference: Sequence[float], parts: Mapping[str, Timed]
) -> Measured:
    return Measured(clockwork.machine, median(reference), dict(sorted(parts.items())))


def measured_shares(
    networks: Mapping[str, bytes],
    original: tuple[str, bytes],
    clockwork: Clockwork,
    progress: Progress = silent,
) -> dict[str, float]:
    """What whole networks take as a share of the original's time, each in turns with it.

    Args:
        networks: a text to know it by, and the model; what is known is not measured again.
        original: the same of the original network.
        clockwork: with what they are measured; `measured_parts` must have been called before.
        progress: told after each step.

    Raises:
        MeasureError: ONNX Runtime cannot run one of them.
        RunError: the file cannot be read or written.
    """
    folder, machine = clockwork.folder, clockwork.machine
    known = read_measured(folder, machine) if folder else None
    names = {name: f"network {name} of {original[0]}" for name in networks}
    parts = dict(known.parts) if known else {}
    todo = [name for name in networks if names[name] not in parts]
    settings = replace(clockwork.settings, schedule=_WHOLE)
    for chunk in _chunks(todo, _TURNS):
        models = {"original": original[1], **{name: networks[name] for name in chunk}}
        found = clockwork.measurer(models, settings)
        parts |= {names[n]: _share(names[n], found[n]) for n in chunk}
        progress(Event("latency table", len(chunk), len(todo), "whole networks timed"))
    if folder and known and todo:
        write_measured(folder, replace(known, parts=dict(sorted(parts.items()))))
    return {name: parts[names[name]].ratio for name in networks}


def _chunks(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]


def _timed(models: Mapping[str, bytes], clockwork: Clockwork) -> tuple[dict[str, Timed], float]:
    """Shares of the reference's time, and its milliseconds; what is unsure is timed once more."""
    found, ms = _once(models, clockwork)
    unsure = {s: models[s] for s, timed in found.items() if _width(timed) > _SURE}
    if unsure:
        again, _ = _once(unsure, clockwork)
        found |= {s: min(found[s], timed, key=_width) for s, timed in again.items()}
    return found, ms


def _width(timed: Timed) -> float:
    return (timed.high - timed.low) / timed.ratio


def _once(models: Mapping[str, bytes], clockwork: Clockwork) -> tuple[dict[str, Timed], float]:
    settings = replace(clockwork.settings, schedule=_SCHEDULE)
    found = clockwork.measurer({_REFERENCE: reference_model(), **models}, settings)
    return {s: _share(s, found[s]) for s in models}, found[_REFERENCE].median_ms


def _share(name: str, latency: Latency) -> Timed:
    timed = Timed(latency.ratio, latency.ratio_low, latency.ratio_high)
    if not 0 < timed.low <= timed.ratio <= timed.high < math.inf:
        raise MeasureError(
            "a model takes a positive share of what takes turns with it, but "
            f"{name!r} took {timed}; the clock may be too coarse for it"
        )
    return timed


def _model(signature: str, operators: Mapping[str, Operator]) -> bytes:
    if signature == EMPTY:
        return empty_model()
    return model_of(operators[signature].form, operators[signature].sizes)


def empty_model() -> bytes:
    """A model that hands one number through."""
    return _small([helper.make_node("Identity", ["x"], ["y"])], [1], [])


def reference_model() -> bytes:
    """A convolution of 32 to 32 channels, 3×3, on 28×28 positions."""
    weight = np.random.default_rng(0).uniform(0.01, 1.0, (32, 32, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    return _small([node], [1, 32, 28, 28], [numpy_helper.from_array(weight, "w")])


def _small(nodes: Sequence[Any], shape: Sequence[int], constants: Sequence[Any]) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "part", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())
