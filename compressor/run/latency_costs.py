"""Latency as a cost of a run: predicted where that can be, and measured."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from compressor.cost import CostModel
from compressor.deploy.export import export_onnx
from compressor.deploy.quantise import quantise_for_timing
from compressor.deploy.slicing import Graph
from compressor.device.local import LOCAL
from compressor.latency.confirming import predicted_latency
from compressor.latency.cost import Build, LatencyCost, measurer_on
from compressor.progress import Event, Progress
from compressor.run.delivery import ONNX, measure_settings
from compressor.run.request import Options, Request, Stopwatch
from compressor.run.searching import CANDIDATE
from compressor.search.journal import Journal
from compressor.space import SearchSpace


def latency_costs(
    request: Request,
    graph: Graph,
    space: SearchSpace,
    build: Build,
    journal: Journal,
    watch: Stopwatch,
    progress: Progress,
) -> tuple[CostModel, LatencyCost]:
    """Latency as the search asks for it, and as it is measured.

    Args:
        request: what was asked for: where and how latency is measured.
        graph: of the original, to be cut.
        space: how it may be cut.
        build: the ONNX model of an architecture where it cannot be cut.
        journal: remembers what is measured, and the table.
        watch: gets the time of each stage.
        progress: told of the table.
    """
    settings = measure_settings(request, CANDIDATE)

    def cost(unit: str, **how: Any) -> LatencyCost:
        return LatencyCost(
            graph,
            space,
            settings,
            recall=lambda a: journal.cost(unit, a),
            remember=lambda a, value: journal.record_cost(unit, a, value),
            fallback=build,
            measurer=measurer_on(request.options.device),
            **how,
        )

    measured = (
        cost("latency", prepare=quantise_for_timing, whole=cost("latency in single precision"))
        if request.options.int8
        else cost("latency")
    )
    why = _unpredictable(request.options)
    if why:
        progress(Event("latency table", 1, 1, f"each candidate is measured: {why}"))
        return measured, measured
    with watch.stage("latency table"):
        folder = request.options.latency_folder
        table = predicted_latency(graph, space, measured, settings, journal, progress, folder)
    return table, measured


def exported(request: Request, model: nn.Module) -> bytes:
    """A network of the request as an ONNX model."""
    with tempfile.TemporaryDirectory() as scratch:
        path = export_onnx(model, request.example, Path(scratch) / ONNX).path
        return path.read_bytes()


def _unpredictable(options: Options) -> str:
    """Why latency cannot be predicted from operators; empty where it can."""
    if options.int8:
        return "operators of 8 bits are not in the table"
    # Which operators are fused, and how they are laid out, differs from processor to processor.
    return "" if options.device.name == LOCAL else "the table is of this machine's operators"
