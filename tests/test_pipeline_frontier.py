"""A frontier from the network to the files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import compressor
from cli.main import main
from compressor.deploy import export
from compressor.device.timing import Schedule
from compressor.errors import BudgetError, CheckError, InfeasibleError, RunError, UsageError
from compressor.latency import cost as latency
from compressor.progress import Event
from compressor.report.overview import Overview
from compressor.report.result import RunSummary
from compressor.run import delivery
from tests import networks
from tests.test_pipeline import FILES, Score, by_weights, compress, data, without_export

FRONTIER = "madds=50%,80%,65%"
FOLDERS = ["madds-80pct", "madds-65pct", "madds-50pct"]


def run(out: Path, **changes: Any) -> compressor.Result:
    return compress(out, **{"budget": (), "frontier": FRONTIER, "evaluations": 9, **changes})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    without_export(monkeypatch)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> compressor.Result:
    out = tmp_path_factory.mktemp("frontier") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "_FINAL", Schedule(rounds=6, seconds=0.1))
        return run(out, validation=data(1), refit=True)


def test_every_budget_gets_a_complete_network(real: compressor.Result) -> None:
    assert names(real.run) == {*FOLDERS, "frontier.json", "report.html", "journal.sqlite"}
    x = data(5)[0][0]
    for point, folder, share in zip(real.points, FOLDERS, (0.8, 0.65, 0.5), strict=True):
        assert point.run == real.run / folder
        assert names(point.run) == FILES - {"journal.sqlite"}
        assert RunSummary.read(point.run) == point.summary
        (row,) = point.summary.budgets
        assert row.met
        assert row.limit == pytest.approx(share * point.summary.base.madds)
        loaded = compressor.load(point.run, networks.Separable(4))
        with torch.no_grad():
            assert torch.equal(loaded(x), point.model(x))
        notes = {p.key: p.value for p in onnx.load(point.onnx_path).metadata_props}
        assert notes["compressor.budget"] == row.requested
    first = real.points[0]
    assert (real.model, real.onnx_path, real.summary) == (
        first.model, first.onnx_path, first.summary,
    )  # fmt: skip


def test_one_search_for_all(real: compressor.Result) -> None:
    assert {point.summary.evaluations for point in real.points} == {9}
    assert {point.summary.scored for point in real.points} == {real.summary.scored}


def test_the_trace_tells_of_every_budget(real: compressor.Result) -> None:
    trace = compressor.read_trace(real.run)
    assert len(trace.scored) == 9
    limits = [point.summary.budgets[0].limit for point in real.points]
    assert [budget[0].high for budget in trace.budgets] == limits
    assert [e.score for e in trace.scored] == [row.score for row in real.summary.scored]
    for pick, limit in zip(trace.picks, limits, strict=True):
        inside = [e for e in trace.scored if e.costs["madds"] <= limit]
        assert trace.scored[pick.evaluation].score == max(e.score or 0.0 for e in inside)
    words = [str(real.run), "--trace"]
    result = CliRunner().invoke(main, ["report", *words], env={"COLUMNS": "100"})
    assert "for each of 3 budgets: at most madds" in " ".join(result.stdout.split())
    assert result.stdout.count("Taken for") == 3


def test_the_table_holds_what_was_delivered(real: compressor.Result) -> None:
    overview = Overview.read(real.run)
    assert [(row.folder, row.best) for row in overview.rows] == [
        (point.run.name, point.summary.best) for point in real.points
    ]
    scores = [row.best.score or 0.0 for row in overview.rows]
    assert scores == sorted(scores, reverse=True)
    assert overview.base.madds == real.summary.base.madds
    html = (real.run / "report.html").read_text()
    assert all(f"{folder}/report.html" in html for folder in FOLDERS)


@pytest.mark.usefixtures("stub")
def test_a_finished_network_that_scores_less_gives_way_to_the_tighter_one(tmp_path: Path) -> None:
    """Finishing changes scores: here it is the worse, the larger the network is."""
    calls = 0

    def score(net: nn.Module) -> float:
        nonlocal calls
        calls += 1
        size = sum(p.numel() for p in net.parameters())
        return float(-size if calls > 10 else size)

    result = run(tmp_path / "run", score=score)
    picked = {point.summary.architecture for point in result.points}
    assert picked == {result.points[-1].summary.architecture}
    assert len({point.summary.best.score for point in result.points}) == 1
    assert [point.summary.budgets[0].requested for point in result.points] == [
        "madds=80%", "madds=65%", "madds=50%",
    ]  # fmt: skip


@pytest.mark.usefixtures("stub")
def test_a_frontier_beside_a_budget_and_a_range(tmp_path: Path) -> None:
    result = run(tmp_path / "run", budget="params=10%..75%")
    for point in result.points:
        assert [row.unit for row in point.summary.budgets] == ["madds", "params"]
        assert all(row.met for row in point.summary.budgets)
        assert point.summary.settings["budget"].endswith(", params=10%..75%")


def test_a_frontier_of_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "measure", by_weights)
    monkeypatch.setattr(delivery, "measure", by_weights)
    result = run(tmp_path / "run", frontier="latency=80%,2ms", refit=True)
    times = [point.summary.best.latency_ms or math.inf for point in result.points]
    assert all(row.met for point in result.points for row in point.summary.budgets)
    assert times == sorted(times, reverse=True)
    assert [p.run.name for p in result.points] == ["latency-80pct", "latency-2-ms"]


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("at", [3, 6, 9, 10, 11])
def test_an_interrupted_frontier_resumes_to_the_same(tmp_path: Path, at: int) -> None:
    def stop(call: int) -> None:
        if call == at:
            raise KeyboardInterrupt

    score, first, second = Score(), Score(stop), Score()
    whole = run(tmp_path / "whole", score=score)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", score=first)
    assert names(tmp_path / "run") == {"journal.sqlite"}
    events: list[Event] = []
    resumed = run(tmp_path / "run", score=second, progress=events.append)
    known = min(at - 2, 9)
    assert second.calls == score.calls - known
    assert next(e.done for e in events if e.stage == "search") == known
    assert [p.summary.architecture for p in resumed.points] == [
        p.summary.architecture for p in whole.points
    ]
    assert resumed.summary.scored == whole.summary.scored


@pytest.mark.usefixtures("stub")
def test_a_finished_frontier_is_written_again_and_another_refused(tmp_path: Path) -> None:
    run(tmp_path / "run")
    (tmp_path / "run" / ".unfinished" / "madds-80pct").mkdir(parents=True)  # it was killed once
    score = Score()
    again = run(tmp_path / "run", frontier="madds=80%,65%,50%", score=score)
    assert score.calls == 1 + len({p.summary.architecture for p in again.points})
    assert names(tmp_path / "run") == {*FOLDERS, "frontier.json", "report.html", "journal.sqlite"}
    with pytest.raises(RunError, match="frontier was"):
        run(tmp_path / "run", frontier="madds=80%,50%")
    with pytest.raises(RunError, match=r"frontier was .* and is now not given"):
        compress(tmp_path / "run")


@pytest.mark.parametrize("at", [1, 4, 6])
def test_nothing_is_delivered_unless_everything_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    calls: list[int] = []

    def compare(*_: Any) -> float:
        calls.append(1)
        if len(calls) == at:
            raise CheckError("ONNX Runtime and torch must agree, but differ by 0.5")
        return 0.0

    monkeypatch.setattr(export, "largest_difference", compare)
    monkeypatch.setattr(delivery, "measure", by_weights)
    with pytest.raises(CheckError, match=r"differ by 0\.5"):
        run(tmp_path / "run", evaluations=3)
    assert names(tmp_path / "run") == {"journal.sqlite"}


@pytest.mark.usefixtures("stub")
def test_a_full_disk_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(RunError, match="No space left on device; free some space"):
        run(tmp_path / "run")
    assert names(tmp_path / "run") == {"journal.sqlite"}


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"frontier": "madds=50%"}, BudgetError, "at least two different amounts"),
        ({"frontier": "madds=90%,1%"}, InfeasibleError, "cheapest network found"),
        ({"frontier": "madds=90%,1G"}, BudgetError, "already meets"),
        ({"budget": "madds=95%"}, BudgetError, "drop the budget"),
        ({"evaluations": 2}, UsageError, "3 budgets and 2 evaluations"),
        ({"frontier": None}, BudgetError, "at least one budget"),
    ],
)
def test_what_is_refused_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        run(tmp_path / "runs" / "run", **changes)
    assert list(tmp_path.iterdir()) == []
