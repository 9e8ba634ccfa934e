"""Latency as the budget of several tasks: what is predicted, what is promised, what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import compressor
from compressor import Task, compress_multitask
from compressor.deploy.export import ExportReport, export_base
from compressor.deploy.joining import JointGraph
from compressor.deploy.slicing import BaseGraph
from compressor.device.measure import Settings, create_session, run_session
from compressor.device.timing import Latency
from compressor.errors import ArchitectureError, CheckError
from compressor.latency import cost as latency
from compressor.multitask import costs
from compressor.multitask.encoders import read_shared
from compressor.multitask.task import checked_tasks
from compressor.network.data import tensors_hash
from compressor.network.structure import materialise
from compressor.report.multitask import MultitaskSummary
from compressor.run import delivery as run_delivery
from compressor.search.journal import Journal
from tests.test_multitask import EXAMPLE, tasks
from tests.test_pipeline import by_weights, shares

FEW: dict[str, Any] = {"evaluations": 6}


def odd_and_deep() -> list[Task]:
    """Of equal encoders the second has the larger head."""
    return tasks()[1:]


@pytest.fixture(scope="module", autouse=True)
def exported_once() -> Iterator[None]:
    """Networks of equal weights are exported once for all tests, since that takes seconds."""
    graphs: dict[str, BaseGraph] = {}

    def base(model: nn.Module, example: Any) -> BaseGraph:
        key = tensors_hash(model.state_dict().items())
        return graphs.get(key) or graphs.setdefault(key, export_base(model, example))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "export_base", base)
        yield


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A microsecond for each weight, wherever something is timed."""
    monkeypatch.setattr(latency, "measure", by_weights)
    monkeypatch.setattr(run_delivery, "measure", by_weights)
    monkeypatch.setattr(run_delivery, "profile_models", lambda *_, **__: {})


def slowest(run: Path) -> Any:
    with Journal.read(run / "journal.sqlite") as journal:
        return journal.get("slowest task")


def hollow(model: nn.Module, _: Any, path: Path, **__: Any) -> ExportReport:
    """In place of an export: a file with the network's weights, which computes nothing."""
    tensors = [numpy_helper.from_array(v.numpy(), n) for n, v in model.state_dict().items()]
    nodes = [helper.make_node("Identity", [t.name], [f"{t.name}'"]) for t in tensors]
    onnx.save(helper.make_model(helper.make_graph(nodes, "hollow", [], [], tensors)), str(path))
    return ExportReport(path, 18, path.stat().st_size, 0.0, (1,), ("x",))


def slow(models: Mapping[str, Any], *_: Any, **__: Any) -> dict[str, Latency]:
    """A clock by which all files take as long as the original."""
    return {n: replace(t, **shares(1.0)) for n, t in by_weights(models).items()}


def test_every_tasks_file_keeps_a_latency_per_encoder_or_none_is_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_delivery, "export_onnx", hollow)
    asked: dict[str, Any] = {"budget": "latency=60%", "out": tmp_path / "run", **FEW}
    with monkeypatch.context() as patch:
        patch.setattr(run_delivery, "measure", slow)
        with pytest.raises(CheckError, match=r"task 'odd': the budget latency=60% allows"):
            compress_multitask(odd_and_deep(), **asked)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"journal.sqlite"}
    assert slowest(tmp_path / "run") == "deep"

    def never(*_: object) -> None:
        raise AssertionError("which task is the slowest was measured before")

    monkeypatch.setattr(costs, "measurer_on", never)
    result = compress_multitask(odd_and_deep(), **asked)
    rows = []
    for task in result.tasks:
        base, best = task.summary.base.latency_ms, task.summary.best.latency_ms
        assert base is not None
        assert best is not None
        (row,) = task.summary.budgets
        assert row.met
        assert (row.unit, row.reached, row.limit) == ("latency", best, pytest.approx(0.6 * base))
        assert all(scored.cost > 0 for scored in task.summary.scored)
        rows.append(row)
    # the fixed head leaves the encoder of the second less: it comes closest
    assert MultitaskSummary.read(result.run).budgets == (rows[1],)


def test_all_networks_together_keep_the_latency_of_the_joint_file(tmp_path: Path) -> None:
    result = compress_multitask(
        odd_and_deep(), budget="latency=60%", per="all", joint=True, out=tmp_path / "run", **FEW
    )
    joint, (row,) = result.summary.joint, result.summary.budgets
    assert joint is not None
    assert joint.base.latency_ms is not None
    assert row.met
    assert row.reached == joint.best.latency_ms
    assert row.limit == pytest.approx(0.6 * joint.base.latency_ms)
    weights = sum(t.summary.best.latency_ms or 0 for t in result.tasks)
    assert row.reached == pytest.approx(weights, abs=1e-4)
    assert all(not task.summary.budgets for task in result.tasks)


def test_the_joint_graph_of_any_architecture_computes_every_network() -> None:
    given = checked_tasks(tasks())
    spaces = [reading.space for reading in read_shared(given)]
    graph = JointGraph(
        {
            t.name: (costs.export_base(t.model, (EXAMPLE,)), s)
            for t, s in zip(given, spaces, strict=True)
        }
    )
    rng = np.random.default_rng(0)
    drawn = [tuple(int(rng.integers(n)) for n in spaces[0].sizes) for _ in range(3)]
    x = torch.randn(3, 3, 8, 8)
    for architecture in (spaces[0].smallest, spaces[0].original, *drawn):
        session = create_session(graph.slice(spaces[0], architecture), Settings())
        found = run_session(session, [x.numpy()])
        for task, space, got in zip(given, spaces, found, strict=True):
            with torch.no_grad():
                wanted = materialise(task.model, space, architecture)(x)
            assert np.allclose(got, wanted.numpy(), atol=1e-5)
    with pytest.raises(ArchitectureError):
        graph.slice(spaces[0], (0,))


def test_the_public_call_takes_a_device() -> None:
    with pytest.raises(compressor.errors.UsageError, match="ssh"):
        compress_multitask(odd_and_deep(), budget="madds=50%", out="never", device="nowhere")
