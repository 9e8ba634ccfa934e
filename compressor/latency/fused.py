"""What ONNX Runtime makes of a model when it loads it: which operators it runs, on which sizes.

The runtime fuses BatchNorm, activations and sums into convolutions and changes the layout of
tensors, differently from processor to processor and from width to width. So it is asked, not
imitated: it writes down the graph that it will run, and its profiler says what each operator got.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from compressor.device.measure import Settings, create_session, random_inputs, run_session

_SUFFIX = "_kernel_time"  # of an operator's own time among the profiler's events


@dataclass(frozen=True)
class Given:
    """A tensor that an operator was given.

    Attributes:
        type: type of its elements as the profiler writes it, for example `float`.
        sizes: its shape.
    """

    type: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Fused:
    """A model as ONNX Runtime runs it.

    Attributes:
        model: the graph after all optimisations, a serialised ONNX model; it may hold operators
            that only this runtime on this processor knows.
        given: for each operator by its name the tensors that it was given.
    """

    model: bytes
    given: Mapping[str, tuple[Given, ...]]


Fuser: TypeAlias = Callable[[bytes], Fused]


def fuse(
    model: bytes,
    settings: Settings,
    *,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Fused:
    """Loads a model, runs it once, and returns what was run.

    Args:
        model: a serialised ONNX model.
        settings: threads and provider; the schedule is not used.
        batch: size of a free first dimension.
        shapes: shapes of inputs with other free dimensions.

    Raises:
        MeasureError: ONNX Runtime cannot load or run it.
        UsageError: the provider is not there, or an input has a free dimension.
    """
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "fused.onnx"
        session = create_session(
            model, settings, profile=Path(scratch) / "profile", written=written
        )
        rng = np.random.default_rng(0)
        run_session(session, random_inputs(session, rng, batch=batch, shapes=shapes))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return Fused(written.read_bytes(), dict(_given(events)))


def _given(events: Sequence[Mapping[str, Any]]) -> Sequence[tuple[str, tuple[Given, ...]]]:
    found = []
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            shapes = event["args"]["input_type_shape"]
            given = (Given(kind, tuple(s)) for shape in shapes for kind, s in shape.items())
            found.append((event["name"].removesuffix(_SUFFIX), tuple(given)))
    return found
