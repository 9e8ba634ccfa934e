"""Runs models under ONNX Runtime's own profiler, in turns. Knows no torch."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from compressor.device.measure import (
    Array,
    Session,
    Settings,
    create_session,
    random_inputs,
    run_session,
)
from compressor.device.origins import origins
from compressor.device.profile import Profile, read_events
from compressor.errors import MeasureError, UsageError

WARMUP = 5
RUNS = 30
# Runs of a model in one turn. The first of them is slower, since the model before it has taken the
# processor's caches; it is among the slowest quarter, which does not count.
_TURN = 6


def profile_models(
    models: Mapping[str, Path | bytes],
    settings: Settings,
    *,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    runs: int = RUNS,
    seed: int = 0,
) -> dict[str, Profile]:
    """Where one call of each model spends its time, in the order given.

    The models run in turns, so that a machine that slows down slows all of them. The profiler
    itself takes a little time for each operator, and counts in whole microseconds: the shares are
    what it is good for, `compressor.device.measure.measure` for how long a call takes.

    Args:
        models: name to ONNX model.
        settings: threads and provider; its schedule is not used.
        batch: size of a free first dimension.
        shapes: of inputs that leave more than the batch size free.
        runs: runs that count, after a few that do not.
        seed: of the inputs.

    Raises:
        MeasureError: a model is missing, cannot be loaded or fails to run; it is named.
        UsageError: no models or no runs, an unknown provider, or an input with a free dimension
            that `shapes` does not fix.
    """
    if not models or runs < 1:
        raise UsageError(
            "a profile needs at least one model and one run, but got "
            f"{len(models)} models and {runs} runs"
        )
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as scratch:
        sessions: dict[str, tuple[Session, list[Array]]] = {}
        for number, (name, model) in enumerate(models.items()):
            try:
                session = create_session(model, settings, profile=Path(scratch) / str(number))
                inputs = random_inputs(session, rng, batch=batch, shapes=shapes)
                run_session(session, inputs)
            except MeasureError as error:
                raise MeasureError(f"model {name!r}: {error}") from error
            sessions[name] = session, inputs
        for _ in range(math.ceil((WARMUP + runs) / _TURN)):
            for session, inputs in sessions.values():
                for _ in range(_TURN):
                    run_session(session, inputs)
        return {name: _read(session, runs, models[name]) for name, (session, _) in sessions.items()}


def _read(session: Session, runs: int, model: Path | bytes) -> Profile:
    path = Path(session.end_profiling())
    try:
        events = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MeasureError(
            f"ONNX Runtime's profile cannot be read: {error}; free some space"
        ) from error
    return read_events(events, runs, origins(model))
