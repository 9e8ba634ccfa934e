"""A frontier for several tasks: a folder for each budget, and every command that reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import compressor
from cli.measure_command import onnx_files
from compressor import compress_multitask
from compressor.device.measure import Settings, create_session, run_session
from compressor.errors import RunError, UsageError
from compressor.multitask import delivery
from compressor.multitask.finding import Shared
from compressor.progress import Event
from compressor.report.multitask import MultitaskSummary
from compressor.report.overview import Overview
from compressor.report.result import RunSummary
from compressor.report.side_by_side import read_runs
from compressor.run import delivery as run_delivery
from tests.test_cli import call
from tests.test_multitask import two
from tests.test_pipeline import by_weights

FRONTIER = "madds=50%,80%"
FOLDERS = ["madds-80pct", "madds-50pct"]
TARGET = "from tests.test_multitask import two as tasks\n"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[compressor.MultitaskResult]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_delivery, "measure", by_weights)
        patch.setattr(run_delivery, "profile_models", lambda *_, **__: {})
        out = tmp_path_factory.mktemp("frontier") / "run"
        yield compress_multitask(two(), frontier=FRONTIER, out=out, joint=True, evaluations=6)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.py"
    path.write_text(TARGET)
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_budget_gets_what_a_run_of_its_own_leaves(done: compressor.MultitaskResult) -> None:
    assert names(done.run) == {*FOLDERS, "frontier.json", "journal.sqlite", "report.html"}
    for point, folder, share in zip(done.points, FOLDERS, (0.8, 0.5), strict=True):
        assert point.run == done.run / folder
        assert names(point.run) == {"joint.onnx", "kind", "multitask.json", "odd", "report.html"}
        assert MultitaskSummary.read(point.run) == point.summary
        (row,) = point.summary.budgets
        assert row.met
        assert (row.requested, row.low) == (f"madds={share:.0%}", None)
        for given, task in zip(two(), point.tasks, strict=True):
            x = torch.randn(2, 3, 8, 8)
            loaded = compressor.load(point.run / task.name, given.model)
            assert torch.equal(loaded(x), task.model(x))
    assert done.tasks == done.points[0].tasks


def test_the_table_of_a_frontier_is_of_all_networks_together(
    done: compressor.MultitaskResult,
) -> None:
    overview = Overview.read(done.run)
    assert [row.folder for row in overview.rows] == FOLDERS
    assert overview.base.score == -2
    for row, point in zip(overview.rows, done.points, strict=True):
        assert row.best.score == pytest.approx(-point.summary.total)
        assert row.best.madds == sum(t.summary.best.madds for t in point.tasks)
        assert point.summary.joint is not None
        assert row.best.latency_ms == point.summary.joint.best.latency_ms
    assert done.points[0].summary.total <= done.points[1].summary.total


def test_without_a_joint_file_the_table_has_the_sums(done: compressor.MultitaskResult) -> None:
    from compressor.report.multitask import overview_of  # noqa: PLC0415

    alone = replace(done.points[0].summary, joint=None)
    (row,) = overview_of([("there", alone)]).rows
    assert row.best.latency_ms == sum(t.best.latency_ms or 0 for t in alone.tasks)
    assert row.best.file_bytes == sum(t.best.file_bytes or 0 for t in alone.tasks)


def test_the_same_call_again_scores_nothing_and_finds_the_same(
    done: compressor.MultitaskResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    seen: list[Shared] = []

    def stop(_: object, points: list[Shared], *__: object, **___: object) -> None:
        seen.extend(points)
        raise KeyboardInterrupt

    monkeypatch.setattr("compressor.multitask.pipeline.deliver_points", stop)
    with pytest.raises(KeyboardInterrupt):
        compress_multitask(
            two(), frontier=FRONTIER, out=done.run, evaluations=6, progress=events.append
        )
    assert next(e for e in events if e.stage == "search").done == 6
    assert [s.architecture for s in seen] == [p.summary.architecture for p in done.points]


def test_a_frontier_that_fails_leaves_the_journal_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RunError("no")

    monkeypatch.setattr(delivery, "export_original", fails)
    with pytest.raises(RunError):
        compress_multitask(two(), frontier=FRONTIER, out=tmp_path / "run", evaluations=4)
    assert names(tmp_path / "run") == {"journal.sqlite"}


def test_every_network_of_a_run_for_several_is_compared(done: compressor.MultitaskResult) -> None:
    inner = [str(done.run / folder / name) for folder in FOLDERS for name in ("kind", "odd")]
    assert [run.name for run in read_runs([done.run])] == inner
    assert [run.name for run in read_runs([done.run / FOLDERS[1]])] == inner[2:]


@pytest.mark.parametrize("form", ["html", "md"])
def test_every_report_is_written_again(done: compressor.MultitaskResult, form: str) -> None:
    result = call("report", done.run, "--format", form)
    assert result.exit_code == 0, result.output
    places = [
        Path(folder) / name / f"report.{form}" for folder in FOLDERS for name in ("kind", "odd", "")
    ]
    wanted = [str(done.run / place) for place in (*places, Path(f"report.{form}"))]
    assert result.stdout.split() == wanted
    for path in map(Path, wanted):
        if form == "md":
            path.unlink()  # the other tests know what is there


def test_markdown_of_several_tasks_says_what_the_page_says(
    done: compressor.MultitaskResult,
) -> None:
    text = call("report", done.run / FOLDERS[0], "--format", "md", "-o", "-").stdout
    for part in ("| kind |", "| odd |", "madds=80%", "joint.onnx", "The shared architecture"):
        assert part in text


def test_the_folder_of_a_run_stands_for_its_files_when_they_are_measured(
    done: compressor.MultitaskResult, tmp_path: Path
) -> None:
    run = done.run / FOLDERS[0]
    files = [run / "kind" / "model.onnx", run / "odd" / "model.onnx", run / "joint.onnx"]
    assert onnx_files(run) == files
    assert onnx_files(run / "odd") == [files[1]]
    assert onnx_files(files[2]) == [files[2]]
    assert len(onnx_files(done.run)) == 4
    result = call("measure", run, "--seconds", 0.05, "--json")
    assert [row["model"] for row in json.loads(result.stdout)["models"]] == list(map(str, files))
    with pytest.raises(UsageError, match=r"holds no model\.onnx; name the file"):
        onnx_files(tmp_path)


def test_files_are_exported_again(done: compressor.MultitaskResult, target: Path) -> None:
    run = done.run / FOLDERS[1]
    files = [run / "kind" / "model.onnx", run / "odd" / "model.onnx", run / "joint.onnx"]
    before = [onnx.load(str(path)) for path in files]
    x = torch.randn(3, 3, 8, 8).numpy()
    outputs = [run_session(create_session(path, Settings()), [x]) for path in files]
    for path in files:
        path.unlink()
    result = call("export", run, target)
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == list(map(str, files))
    for path, model, wanted in zip(files, before, outputs, strict=True):
        assert onnx.load(str(path)).metadata_props == model.metadata_props
        found = run_session(create_session(path, Settings()), [x])
        assert all((a == b).all() for a, b in zip(found, wanted, strict=True))


def test_one_task_is_exported_again(done: compressor.MultitaskResult, target: Path) -> None:
    run = done.run / FOLDERS[0]
    result = call("export", run / "odd", target, "--static-batch")
    assert result.stdout.split() == [str(run / "odd" / "model.onnx")]
    (value,) = onnx.load(str(run / "odd" / "model.onnx")).graph.input
    assert value.type.tensor_type.shape.dim[0].dim_value == 1


def test_what_cannot_be_exported_is_told(
    done: compressor.MultitaskResult, target: Path, tmp_path: Path
) -> None:
    run = done.run / FOLDERS[0]
    one = "madds-50pct/kind or madds-50pct/odd"
    other = tmp_path / "other.py"
    other.write_text(TARGET + "given = tasks\ndef tasks():\n    return [given()[0]] * 2\n")
    network = tmp_path / "net.py"
    network.write_text("def build_model(): ...\n")
    for words, told in (
        ((done.run, target), f"a run for several networks: name the folder of one, {one}"),
        ((run, target, "--static-batch"), f"name one task, for example '{run / 'kind'}'"),
        ((run / "odd",), "names no target; give it"),
        ((run / "odd", network), "defines one network, which `compressor compress` takes"),
        ((run / "odd", other), "'kind' twice"),
    ):
        result = call("export", *words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert told in result.stderr, result.stderr
    result = call("inspect", target)
    assert "defines tasks(), which `compressor compress-multitask` takes" in result.stderr
    with pytest.raises(RunError, match="give the folder of one network"):
        compressor.load(done.run, nn.Linear(1, 1))


def test_the_trace_of_one_network_is_that_of_the_whole_run(
    done: compressor.MultitaskResult,
) -> None:
    for folder in (done.run / FOLDERS[0], done.run / FOLDERS[0] / "odd"):
        result = call("report", folder, "--trace")
        assert f"the run that this network is of, '{done.run}'" in result.stderr
    assert call("report", done.run, "--trace").exit_code == 0


@pytest.mark.parametrize("name", ["..", "a/b", ""])
def test_a_task_that_leads_out_of_its_run_is_not_followed(
    done: compressor.MultitaskResult, tmp_path: Path, name: str
) -> None:
    data = json.loads((done.run / FOLDERS[0] / "multitask.json").read_text())
    data["tasks"][0]["name"] = name
    (tmp_path / "multitask.json").write_text(json.dumps(data))
    with pytest.raises(RunError, match="lies in the run"):
        MultitaskSummary.read(tmp_path)


def test_a_task_whose_folder_is_a_link_is_not_followed(
    done: compressor.MultitaskResult, tmp_path: Path
) -> None:
    text = (done.run / FOLDERS[0] / "multitask.json").read_text()
    (tmp_path / "multitask.json").write_text(text)
    (tmp_path / "kind").symlink_to(done.run / FOLDERS[0] / "kind")
    with pytest.raises(RunError, match="'kind' is a link"):
        read_runs([tmp_path])
    assert RunSummary.read(tmp_path / "kind").evaluations == 6
