"""Valid inputs of every reader, made by the product itself, to be broken afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from benchmarks.fuzz import network
from benchmarks.fuzz.targets import make_targets
from compressor.deploy import artefacts
from compressor.device.profile import NodeTime, Profile
from compressor.device.timing import Schedule
from compressor.latency.cache import Machine, Measured, Timed, write_measured
from compressor.progress import Event, silent
from compressor.report.overview import Overview
from compressor.report.result import (
    BudgetRow,
    Figures,
    FrontierPoint,
    RunSummary,
    ScoredRow,
    layer_rows,
)
from compressor.run.pipeline import compress
from compressor.run.reading import Reading, read_network

MACHINE = Machine("a processor", "onnxruntime 1.0", "CPUExecutionProvider", 1)
SCHEDULE = Schedule(rounds=6, seconds=0.05)
_ANSWER = {"turns": [[[0.001, 0.002]], [[0.002, 0.002]]], "runtime": "1.0", "processor": "any"}


class SearchedError(Exception):
    """The search of a run is over; what follows it does not read the journal."""


def stop_after_search(event: Event) -> None:
    """Ends a run when its search is over."""
    if event.stage == "export":
        raise SearchedError


def score(model: nn.Module) -> float:
    """Quick, and different for different networks."""
    return float(sum(np.sin(p.numel()) for p in model.parameters()))


def search(run: Path, evaluations: int = 6) -> None:
    """Searches as `compressor compress` does, into the journal of a run."""
    try:
        compress(
            network.build_model(), network.example_input(), budget="madds=60%",
            calibration=network.batches(), out=run, score=score, evaluations=evaluations,
            refit=False, progress=stop_after_search,
        )  # fmt: skip
    except SearchedError:
        return


def make_valid(folder: Path) -> None:
    """Writes `run`, `frontier`, `latency`, `models`, `images`, `targets` and `texts`."""
    example = (network.example_input(),)
    reading = read_network(network.build_model(), example, "generic", silent)
    search(folder / "run")
    _run(folder / "run", reading)
    _frontier(folder / "frontier", reading)
    timed = {f"Conv {n}": Timed(0.5 + n, 0.4 + n, 0.6 + n) for n in range(4)}
    write_measured(folder / "latency", Measured(MACHINE, 0.02, timed))
    _models(folder / "models")
    _images(folder / "images")
    make_targets(folder / "targets")
    (folder / "texts").mkdir()
    (folder / "texts" / "answer.json").write_text(json.dumps(_ANSWER), encoding="utf-8")


def _summary(reading: Reading, budget: str) -> RunSummary:
    space = reading.space
    small = tuple(n // 2 for n in space.original)
    profile = Profile((NodeTime("conv_nchwc", "Conv 3x3", "features.0", 1, 0.5),), 20)
    madds, params = reading.madds(small), reading.params(small)
    return RunSummary(
        base=Figures(reading.madds(space.original), reading.params(space.original), 0.9, 1.5, 9000),
        best=Figures(madds, params, 0.8, 0.9, 6000),
        architecture=small,
        choices=space.describe(small),
        widths=layer_rows(space, small),
        budgets=(BudgetRow("madds", budget, madds + 10.0, float(madds)),),
        evaluations=3,
        failed=1,
        seconds=61.5,
        stages={"search": 50.25},
        frozen=space.frozen,
        frontier=(FrontierPoint(small, madds, params, 0.8, 0.9),),
        scored=(ScoredRow(0, 12e3, 0.7), ScoredRow(1, 19e3, None), ScoredRow(2, 20e3, 0.8)),
        settings={"seed": 0, "target": "torchvision:nothing", "score": "top1", "data": None},
        versions={"torch": "2.13"},
        machine={"processor": "any", "runtime threads": 1},
        profiles={"original": profile, "compressed": profile},
        command="compressor compress net.py --budget madds=50% --out run",
    )


def _run(run: Path, reading: Reading, budget: str = "madds=60%") -> RunSummary:
    summary = _summary(reading, budget)
    small = artefacts.materialise(network.build_model(), reading.space, summary.architecture)
    artefacts.save(run, small, reading.space, summary.architecture)
    summary.write(run)
    return summary


def _frontier(run: Path, reading: Reading) -> None:
    delivered = [
        (folder, _run(run / folder, reading, budget))
        for folder, budget in (("madds-60pct", "madds=60%"), ("madds-50pct", "madds=50%"))
    ]
    Overview.of(delivered).write(run)


def _models(folder: Path) -> None:
    """The same graph with its weights inside, and with them in a file beside it."""
    folder.mkdir()
    onnx.save_model(_graph(), str(folder / "inside.onnx"))
    onnx.save_model(
        _graph(), str(folder / "beside.onnx"), save_as_external_data=True,
        location="beside.bin", size_threshold=0, convert_attribute=False,
    )  # fmt: skip


def _graph() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {
        "features.0.weight": rng.standard_normal((8, 3, 3, 3), dtype=np.float32),
        "head.weight": rng.standard_normal((5, 8), dtype=np.float32),
        "head.bias": np.zeros(5, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "features.0.weight"], ["a"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], "pool"),
        helper.make_node("Flatten", ["c"], ["d"], "flatten"),
        helper.make_node("Gemm", ["d", "head.weight", "head.bias"], ["y"], "head", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number, suffix in enumerate(("png", "jpg", "bmp", "webp")):
            pixels = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.{suffix}")
