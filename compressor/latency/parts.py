"""Times the parts of a network alone, each in turns with one reference part. Knows no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from compressor.device.measure import Settings
from compressor.device.timing import Latency, Schedule
from compressor.errors import MeasureError
from compressor.latency.cache import Machine, Measured, Timed, read_measured, write_measured
from compressor.latency.cost import Measurer
from compressor.latency.operators import Operator, model_of
from compressor.progress import Event, Progress, silent

EMPTY = "nothing"
"""Signature of the model that does nothing: what calling a model takes, whatever is in it."""

COPIES = 2
"""Copies of an operator in the model that times it: calling, and waking threads, counts by half."""

_REFERENCE, _ORIGINAL = "", "original"
_REFERENCE_WIDTHS = ((16, 64, 1), (64, 64, 64), (64, 16, 1))  # in, out, groups
_SLOW = 1.08  # times its fastest: where the reference takes longer, the machine is slower
_TRIES = 3  # measurements of the same at most, while the machine is slower
_SCHEDULE = Schedule(warmup=10, repeats=3, rounds=10, seconds=1e-3)
_WHOLE = Schedule(warmup=20, repeats=3, rounds=20, seconds=1.0)
_HELD = 1 << 28  # bytes of whole networks that are loaded at once and take turns
_CHUNK = 8  # parts that take turns with the reference
_SURE = 0.1  # width of an interval, as a share, from which on a part is timed again
_KEPT = 25  # chunks after which what is measured is written down

Ports: TypeAlias = Mapping[str, Sequence[int]]


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
    shares of one and the same small network's, which takes its turn among every few of them:
    so a machine that becomes slower or faster meanwhile, or until another day, changes little.
    What was measured while that network was slow is measured again.

    Raises:
        MeasureError: an operator cannot be run alone.
        RunError: the file cannot be read or written.
    """
    sheet = _Sheet(clockwork)
    todo = {o.signature: o for o in operators if o.form.node}
    missing = sorted(({EMPTY} | todo.keys()) - sheet.parts.keys())
    np.random.default_rng(0).shuffle(missing)
    queue = [tuple(chunk) for chunk in _chunks(missing, _CHUNK)]
    for _ in range(_TRIES):
        for done, chunk in enumerate(queue, 1):
            sheet.note(chunk, *_timed({s: _model(s, todo) for s in chunk}, clockwork))
            progress(Event("latency table", done, len(queue), f"{len(sheet.parts)} parts timed"))
            if done % _KEPT == 0 or done == len(queue):
                sheet.write()
        queue = sheet.slow()
    return sheet.measured


class _Sheet:
    """The times of parts so far, and how fast the machine was at each few of them."""

    def __init__(self, clockwork: Clockwork) -> None:
        folder, self._machine = clockwork.folder, clockwork.machine
        known = read_measured(folder, clockwork.machine) if folder else None
        self._folder, self._before = folder, known.reference_ms if known else math.inf
        self.parts: dict[str, Timed] = dict(known.parts) if known else {}
        self._paces: dict[tuple[str, ...], float] = {}

    def note(self, chunk: tuple[str, ...], found: Mapping[str, Timed], ms: float) -> None:
        """Of the same chunk, what was measured while the reference was faster counts."""
        if ms < self._paces.get(chunk, math.inf):
            self._paces[chunk] = ms
            self.parts |= found

    def slow(self) -> list[tuple[str, ...]]:
        """Chunks that were measured while the machine was slow."""
        return [chunk for chunk, ms in self._paces.items() if ms > _SLOW * self._fastest]

    @property
    def _fastest(self) -> float:
        return min(self._before, *self._paces.values(), math.inf)

    @property
    def measured(self) -> Measured:
        return Measured(self._machine, self._fastest, dict(sorted(self.parts.items())))

    def write(self) -> None:
        if self._folder:
            write_measured(self._folder, self.measured)


def measured_shares(
    networks: Mapping[str, bytes],
    original: tuple[str, bytes],
    measured: Measured,
    clockwork: Clockwork,
    progress: Progress = silent,
) -> dict[str, float]:
    """What whole networks take as a share of the original's time, all in turns with it.

    As many as memory allows take turns with each other, in no order: with several threads a
    machine may change its pace for some seconds, and what was measured then alone would be off by
    the same. If it is slower than when the parts were measured, they are measured again.

    Args:
        networks: a text to know it by, and the model; what is known is not measured again.
        original: the same of the original network.
        measured: of `measured_parts`.
        clockwork: with what they are measured.
        progress: told after each step.

    Raises:
        MeasureError: ONNX Runtime cannot run one of them.
        RunError: the file cannot be read or written.
    """
    names = {name: f"network {name} of {original[0]}" for name in networks}
    parts = dict(measured.parts)
    todo = sorted(name for name in networks if names[name] not in parts)
    np.random.default_rng(0).shuffle(todo)
    done = 0
    for chunk in _chunks(todo, max(1, _HELD // len(original[1]) - 1)):
        models = {_ORIGINAL: original[1], **{name: networks[name] for name in chunk}}
        found = _at_pace(models, measured.reference_ms, clockwork)
        parts |= {names[n]: _share(names[n], found[n]) for n in chunk}
        done += len(chunk)
        progress(Event("latency table", done, len(todo), "whole networks timed"))
    if clockwork.folder and todo:
        kept = replace(measured, parts=dict(sorted(parts.items())))
        write_measured(clockwork.folder, kept)
    return {name: parts[names[name]].ratio for name in networks}


def _at_pace(
    models: Mapping[str, bytes], usual_ms: float, clockwork: Clockwork
) -> Mapping[str, Latency]:
    """Times of whole networks, of the try in which the reference part was the fastest.

    Tried again while it takes clearly longer than it is known to.
    """
    settings = replace(clockwork.settings, schedule=_WHOLE)
    best: tuple[float, Mapping[str, Latency]] | None = None
    for _ in range(_TRIES):
        found = clockwork.measurer({**models, _REFERENCE: reference_model()}, settings)
        ms = found[_REFERENCE].median_ms
        if best is None or ms < best[0]:
            best = ms, found
        if ms <= _SLOW * usual_ms:
            break
    assert best is not None  # noqa: S101  (there is at least one try)
    return best[1]


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
    return model_of(operators[signature].form, operators[signature].sizes, COPIES)


def empty_model() -> bytes:
    """A model that hands as many numbers through as there are copies."""
    nodes = [helper.make_node("Identity", [f"x{i}"], [f"y{i}"]) for i in range(COPIES)]
    x, y = ({f"{name}{i}": [1] for i in range(COPIES)} for name in "xy")
    return _made(nodes, x, y, [])


def reference_model() -> bytes:
    """Six convolutions on 28×28 positions, as in a small network.

    Not one large one: where other programs or other virtual machines slow this one down, short
    operators suffer most, and the reference is to show that.
    """
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for place, (before, after, groups) in enumerate(_REFERENCE_WIDTHS * 2):
        side = 1 if groups == 1 else 3
        values = rng.uniform(0.001, 0.03, (after, before // groups, side, side))
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{place}"))
        given = "x" if place == 0 else f"h{place - 1}"
        made = "y" if place == 2 * len(_REFERENCE_WIDTHS) - 1 else f"h{place}"
        pads = [side // 2] * 4
        nodes.append(
            helper.make_node("Conv", [given, f"w{place}"], [made], pads=pads, group=groups)
        )
    return _made(nodes, {"x": [1, 16, 28, 28]}, {"y": [1, 16, 28, 28]}, weights)


def _made(nodes: Sequence[Any], x: Ports, y: Ports, constants: Sequence[Any]) -> bytes:
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in p.items()]
        for p in (x, y)
    )
    graph = helper.make_graph(nodes, "part", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())
