"""What a budget limits: one encoder, or all networks together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compressor.cost import CostModel, SizeTable
from compressor.deploy.export import export_base
from compressor.deploy.joining import JointGraph, joined_bytes
from compressor.deploy.slicing import BaseGraph
from compressor.latency.cost import measurer_on
from compressor.multitask.encoders import encoder_tables
from compressor.multitask.joint import together
from compressor.multitask.preparing import Member
from compressor.progress import Event, Progress
from compressor.run.delivery import measure_settings
from compressor.run.latency_costs import exported, latency_costs
from compressor.run.request import Stopwatch
from compressor.run.searching import CANDIDATE
from compressor.score.scorer import Scorer
from compressor.search.journal import Journal
from compressor.space import Architecture

_NOTE = "slowest task"


def costs_of(members: Sequence[Member], per: str) -> dict[str, SizeTable]:
    """MAdds and parameters of one encoder, or of all networks together with their heads."""
    if per == "encoder":
        return encoder_tables(members[0].reading, members[0].task)
    return {
        "madds": together([m.reading.madds for m in members]),
        "params": together([m.reading.params for m in members]),
    }


def shared_costs(
    members: Sequence[Member],
    scorers: Sequence[Scorer],
    per: str,
    journal: Journal,
    watch: Stopwatch,
    progress: Progress,
) -> tuple[dict[str, CostModel], dict[str, CostModel]]:
    """Every cost that a budget names: as the search asks for it, and exact or measured.

    Latency per encoder is that of the task's network of which the original is the slowest: what
    the others take besides the encoder is less. That of all together is of all networks in one
    file.

    Raises:
        ExportError: a network cannot be exported.
        MeasureError: ONNX Runtime cannot run one.
        DeviceError: the device fails.
    """
    request, original = members[0].request, members[0].reading.space
    costs: dict[str, CostModel] = dict(costs_of(members, per))
    whole = dict(costs)
    if "latency" not in request.units:
        return costs, whole
    with watch.stage("graph"):
        graphs = _graphs(members, progress)

    def one(place: int, architecture: Architecture) -> bytes:
        return exported(members[place].request, scorers[place].build(architecture))

    def every(architecture: Architecture) -> bytes:
        return joined_bytes({name: one(i, architecture) for i, name in enumerate(graphs)})

    if per == "all":
        parts = {m.task.name: (graphs[m.task.name], m.reading.space) for m in members}
        costs["latency"], whole["latency"] = latency_costs(
            request, JointGraph(parts), original, every, journal, watch, progress
        )
        return costs, whole
    place = _slowest(members, graphs, journal, progress)
    slowest = members[place]
    costs["latency"], whole["latency"] = latency_costs(
        slowest.request, graphs[slowest.task.name], slowest.reading.space,
        lambda architecture: one(place, architecture), journal, watch, progress,
    )  # fmt: skip
    return costs, whole


def _graphs(members: Sequence[Member], progress: Progress) -> dict[str, BaseGraph]:
    graphs = {}
    for done, member in enumerate(members):
        progress(Event("graph", done, len(members), f"exporting {member.task.name} once"))
        graphs[member.task.name] = export_base(member.request.model, member.request.example)
    progress(Event("graph", len(members), len(members)))
    return graphs


def _slowest(
    members: Sequence[Member],
    graphs: Mapping[str, BaseGraph],
    journal: Journal,
    progress: Progress,
) -> int:
    """The task of which the original network takes longest; a resumed run keeps to its first word.

    With equal encoders it is the one with the slowest head, whose network is the last to keep a
    limit, be it in milliseconds or a share of the original's time.
    """
    names = list(graphs)
    noted = journal.get(_NOTE)
    if noted in names:
        return names.index(noted)
    request = members[0].request
    originals = {
        m.task.name: graphs[m.task.name].slice(m.reading.space, m.reading.space.original)
        for m in members
    }
    progress(Event("graph", 0, None, "which task's network is the slowest"))
    found = measurer_on(request.options.device)(originals, measure_settings(request, CANDIDATE))
    slowest = max(names, key=lambda name: found[name].median_ms)
    progress(Event("graph", 1, 1, f"the slowest network is that of {slowest}"))
    journal.put(_NOTE, slowest)
    return names.index(slowest)
