"""From tasks to what a search needs of each: requests, readings, gauges, libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compressor.errors import DataError
from compressor.multitask.encoders import read_shared, require_same_encoders
from compressor.multitask.rounds import ONE_ROUND, Rounds
from compressor.multitask.scoring import Gauge, Measured, require_positive
from compressor.multitask.task import Task, telling
from compressor.network.passes import watched
from compressor.progress import Event, Progress
from compressor.refit.library import LayerLibrary, Source, make_libraries
from compressor.run.data_used import data_used
from compressor.run.pipeline import fingerprint
from compressor.run.reading import Reading, require_layers
from compressor.run.recognition import code_hash
from compressor.run.request import Options, Request, make_request
from compressor.score.evaluate import checked_score
from compressor.score.judge import Judge

PER = ("encoder", "all")


@dataclass(frozen=True)
class Member:
    """One task, checked and read.

    Attributes:
        task: as it was given.
        request: what a run for this task alone would be asked for.
        reading: its network, with the search layers that all tasks share.
        gauge: measures its networks.
        base: loss and score of the original.
    """

    task: Task
    request: Request
    reading: Reading
    gauge: Gauge
    base: Measured


def prepare(
    tasks: Sequence[Task],
    budget: str | Sequence[str],
    options: Options,
    progress: Progress,
    frontier: str | Sequence[str] | None = None,
) -> tuple[Member, ...]:
    """Checks the tasks and reads their networks.

    Raises:
        UsageError: the request cannot be meant; names the task.
        AdapterError: the encoders differ, or share no search layer.
    """
    require_same_encoders(tasks)
    requests = []
    for done, task in enumerate(tasks):
        progress(Event("check", done, len(tasks), task.name))
        with telling(task):
            requests.append(_request(task, (budget, frontier), options))
    progress(Event("check", len(tasks), len(tasks)))
    readings = read_shared(tasks, options.adapter, progress)
    require_layers(readings[0])
    members = []
    for done, (task, request, reading) in enumerate(zip(tasks, requests, readings, strict=True)):
        progress(Event("score the originals", done, len(tasks), task.name))
        with telling(task):
            gauge = Gauge(_loss(task, request), request.score)
            base = _base(task, request, gauge)
            used = data_used(request)
        members.append(Member(task, replace(request, data=used), reading, gauge, base))
    progress(Event("score the originals", len(tasks), len(tasks)))
    return tuple(members)


def _request(task: Task, goals: tuple[Any, Any], options: Options) -> Request:
    own = replace(options, origin={**options.origin, "task": task.name})
    request = make_request(
        task.model, task.example, goals, task.calibration, task.validation,
        task.training, task.score, own,
    )  # fmt: skip
    if callable(task.score) and task.validation is not None:
        return replace(request, validation=watched(task.validation, "validation data"))
    return request


def _loss(task: Task, request: Request) -> Any:
    return task.loss or Judge("loss", request.validation or ())


def _base(task: Task, request: Request, gauge: Gauge) -> Measured:
    checked_score(request.score, task.model)
    try:
        base = gauge.measure(task.model)
    except DataError as error:
        raise DataError(
            f"the search goes by the loss on validation data, but {error}; or give Task(loss=…): "
            "loss(model) -> float, lower is better"
        ) from error
    require_positive(task, base)
    return base


def libraries_of(members: Sequence[Member], progress: Progress) -> tuple[LayerLibrary, ...]:
    """The tasks' layer libraries, with one order of channels for all."""
    sources = [
        Source(
            m.request.model, m.reading.space, m.request.example, m.request.calibration,
            m.task.importance,
        )
        for m in members
    ]  # fmt: skip
    options = members[0].request.options
    return make_libraries(sources, progress, ranking=options.ranked_by, refit=options.refit)


def shared_fingerprint(
    members: Sequence[Member], per: str, rounds: Rounds = ONE_ROUND
) -> Mapping[str, Any]:
    """What an evaluation or the rounds depend on; a run with another one does not resume."""
    found: dict[str, Any] = {"per": per, "channels": "ranked together", **rounds.fingerprint}
    for m in members:
        own = fingerprint(m.request, m.reading)
        own |= {"head": list(m.task.heads), "importance": m.task.importance}
        if m.task.loss is not None:
            own["loss code"] = code_hash(m.task.loss)
        if m.task.augment is not None and "quantile" in rounds.fingerprint:
            own["augment code"] = code_hash(m.task.augment)
        found |= {f"{m.task.name}: {key}": value for key, value in own.items()}
    return found
