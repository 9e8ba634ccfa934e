"""Several tasks with one encoder architecture: what a run promises, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import compressor
from compressor import Task, compress_multitask
from compressor.device.measure import Settings, create_session, run_session
from compressor.device.timing import Schedule
from compressor.errors import AdapterError, CheckError, DataError, RunError, UsageError
from compressor.files import run_folder
from compressor.multitask import delivery
from compressor.multitask.encoders import encoder_tables, read_shared, require_same_encoders
from compressor.multitask.finding import Shared, find_shared
from compressor.multitask.graphs import encoder_nodes
from compressor.multitask.joint import together
from compressor.multitask.preparing import Member, prepare, shared_fingerprint
from compressor.multitask.task import checked_tasks
from compressor.network.counting import count
from compressor.network.proof import tell_channels_apart
from compressor.network.structure import materialise
from compressor.progress import Event, Progress, silent
from compressor.report.multitask import MultitaskSummary
from compressor.report.result import RunSummary
from compressor.run import delivery as run_delivery
from compressor.run.pipeline import opened_journal
from compressor.run.request import Options, Stopwatch
from compressor.score.judge import Judge
from compressor.search.journal import Journal
from tests import networks

EXAMPLE = torch.zeros(1, 3, 8, 8)
OPTIONS: dict[str, Any] = {"budget": "madds=50%", "evaluations": 4}


class TwoLayers(networks.Separable):
    """The same encoder with a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 3))  # type: ignore[assignment]


def data(classes: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 3, 8, 8, generator=rng), torch.randint(0, classes, (8,), generator=rng))
        for _ in range(2)
    ]


def task(name: str, model: nn.Module, classes: int, **more: Any) -> Task:
    given = {"head": "head", "validation": data(classes, 1)} | more
    tell_channels_apart(model)  # as a trained network's are
    return Task(name, model.eval(), data(classes), **given)


def tasks(**more: Any) -> list[Task]:
    torch.manual_seed(0)
    return [
        task("kind", networks.Separable(4), 4, **more),
        task("odd", networks.Separable(2), 2, **more),
        task("deep", TwoLayers(), 3, **more),
    ]


def two() -> list[Task]:
    return tasks()[:2]


@pytest.fixture(scope="module", autouse=True)
def short_measurements() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_delivery, "_FINAL", Schedule(rounds=6, seconds=0.1))
        yield


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, short_measurements: None
) -> compressor.MultitaskResult:
    out = tmp_path_factory.mktemp("several") / "run"
    return compress_multitask(tasks(), out=out, joint=True, **OPTIONS)


def searched(
    given: list[Task], out: Path, per: str = "encoder", progress: Progress = silent, **more: Any
) -> tuple[tuple[Member, ...], Shared]:
    """All but the delivery."""
    options = Options(**{"evaluations": 4} | more)
    members = prepare(checked_tasks(given), "madds=50%", options, silent)
    known = shared_fingerprint(members, per)
    with run_folder(out) as folder, opened_journal(folder, known) as journal:
        return members, find_shared(members, per, journal, Stopwatch(), progress)[0]


def test_every_task_gets_a_folder_as_a_run_of_its_own_leaves_it(
    done: compressor.MultitaskResult,
) -> None:
    assert {path.name for path in done.run.iterdir()} == {
        "deep", "joint.onnx", "journal.sqlite", "kind", "multitask.json", "odd", "report.html",
    }  # fmt: skip
    for given, result in zip(tasks(), done.tasks, strict=True):
        folder = done.run / given.name
        assert result.onnx_path == folder / "model.onnx"
        assert RunSummary.read(folder).best == result.summary.best
        loaded = compressor.load(folder, given.model)
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(loaded(x), result.model(x))


def test_encoders_in_all_files_are_one_graph_of_equal_shapes(
    done: compressor.MultitaskResult,
) -> None:
    graphs = [encoder_nodes(result.onnx_path, ["head"]) for result in done.tasks]
    assert len(graphs[0]) == done.summary.encoder_nodes > 5
    assert graphs[0] == graphs[1] == graphs[2]
    sizes = [
        {t.name: list(t.dims) for t in onnx.load(str(r.onnx_path)).graph.initializer}
        for r in done.tasks
    ]
    body = [{n: d for n, d in s.items() if n.startswith("body.")} for s in sizes]
    assert body[0] == body[1] == body[2]


def test_tasks_keep_weights_of_their_own(done: compressor.MultitaskResult) -> None:
    kind, odd, deep = (dict(result.model.named_parameters()) for result in done.tasks)
    assert not torch.equal(kind["body.2.0.weight"], odd["body.2.0.weight"])
    assert deep["head.0.weight"].shape[0] == 16
    assert deep["head.2.weight"].shape == (3, 16)


def test_the_joint_file_reads_the_input_once_and_gives_what_every_tasks_file_gives(
    done: compressor.MultitaskResult,
) -> None:
    assert done.joint_path == done.run / "joint.onnx"
    session = create_session(done.joint_path, Settings())
    assert [i.name for i in session.get_inputs()] == ["x"]
    assert [o.name for o in session.get_outputs()] == ["kind", "odd", "deep"]
    x = torch.randn(5, 3, 8, 8).numpy()
    for found, result in zip(run_session(session, [x]), done.tasks, strict=True):
        (own,) = run_session(create_session(result.onnx_path, Settings()), [x])
        assert np.allclose(found, own, atol=1e-6)


def test_the_joint_file_is_measured_beside_the_originals_in_one_file(
    done: compressor.MultitaskResult,
) -> None:
    joint = done.summary.joint
    assert joint is not None
    assert (joint.file, joint.inputs) == ("joint.onnx", ("x",))
    assert joint.outputs == {"kind": ("kind",), "odd": ("odd",), "deep": ("deep",)}
    for whole, parts in (
        (joint.base, [row.base for row in done.summary.tasks]),
        (joint.best, [row.best for row in done.summary.tasks]),
    ):
        assert whole.madds == sum(p.madds for p in parts)
        assert whole.params == sum(p.params for p in parts)
        assert whole.latency_ms is not None
        assert whole.latency_ms > 0
    assert joint.best.file_bytes == (done.run / "joint.onnx").stat().st_size
    page = (done.run / "report.html").read_text(encoding="utf-8")
    assert "joint.onnx reads x once and gives kind; odd; deep" in page


def test_the_budget_of_one_encoder_holds(done: compressor.MultitaskResult) -> None:
    (row,) = done.summary.budgets
    assert row.met
    inner = [
        sum(t.madds for t in count(m, (EXAMPLE,)).tensors if not t.name.startswith("head."))
        for m in (tasks()[0].model, done.tasks[0].model)
    ]
    assert row.reached == inner[1] <= inner[0] / 2
    assert row.limit == inner[0] / 2


def test_the_budget_of_all_networks_counts_their_heads(tmp_path: Path) -> None:
    _, shared = searched(tasks(), tmp_path / "run", per="all")
    (budget,) = shared.budgets
    reached = budget.cost(shared.search.best.architecture)
    assert reached == sum(count(f.model, (EXAMPLE,)).madds for f in shared.found)
    assert budget.high == sum(count(t.model, (EXAMPLE,)).madds for t in tasks()) / 2
    assert reached <= budget.high


def test_costs_of_several_networks_are_added_for_any_architecture() -> None:
    given = checked_tasks(tasks())
    readings = read_shared(given)
    space = readings[0].space
    for unit in ("madds", "params"):
        tables = [getattr(r, unit) for r in readings]
        for architecture in (space.original, space.smallest):
            assert together(tables)(architecture) == sum(t(architecture) for t in tables)
    with pytest.raises(ValueError, match="one unit"):
        together([readings[0].madds, readings[0].params])


def test_the_cost_of_the_encoder_is_the_same_in_all_tasks() -> None:
    given = checked_tasks(tasks())
    readings = read_shared(given)
    for unit in ("madds", "params"):
        smallest = readings[0].space.smallest
        found = {encoder_tables(r, t)[unit](smallest) for r, t in zip(readings, given, strict=True)}
        assert len(found) == 1


def test_layers_of_heads_stay_as_they_are() -> None:
    given = checked_tasks(tasks())
    readings = read_shared(given)
    assert [x.name for x in readings[0].space.layers] == [x.name for x in readings[2].space.layers]
    frozen = {f.name: f.reason for f in readings[2].space.frozen}
    assert "belongs to the head" in frozen["head.0"]
    small = materialise(given[2].model, readings[2].space, readings[2].space.smallest)
    assert small.get_parameter("head.0.weight").shape[0] == 16
    assert small.get_parameter("head.0.weight").shape[1] < 48


def test_the_search_makes_the_sum_of_normalised_losses_small(
    done: compressor.MultitaskResult,
) -> None:
    for given, result, row in zip(tasks(), done.tasks, done.summary.tasks, strict=True):
        judge = Judge("loss", given.validation or ())
        assert row.base_loss == pytest.approx(-judge(given.model))
        assert row.loss == pytest.approx(-judge(result.model), rel=1e-4)
        assert row.base.score == pytest.approx(Judge("top1", judge.batches)(given.model))
    assert done.summary.total == pytest.approx(
        sum(r.loss / r.base_loss for r in done.summary.tasks)
    )


def test_a_resumed_run_scores_nothing_twice_and_ends_the_same(tmp_path: Path) -> None:
    _, whole = searched(two(), tmp_path / "whole")

    def stop(event: Event) -> None:
        if event.stage == "search" and event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(two(), tmp_path / "run", progress=stop)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"journal.sqlite"}
    events: list[Event] = []
    _, shared = searched(two(), tmp_path / "run", progress=events.append)
    assert next(e for e in events if e.stage == "search").done == 2
    assert shared.search == whole.search
    assert shared.losses == whole.losses
    assert [f.search.scored for f in shared.found] == [f.search.scored for f in whole.found]


def test_another_importance_does_not_resume(tmp_path: Path) -> None:
    searched(two(), tmp_path / "run")
    other = [replace(two()[0], importance=2.0), two()[1]]
    with pytest.raises(RunError, match="kind: importance was"):
        searched(other, tmp_path / "run")


def test_importances_weigh_the_tasks(tmp_path: Path) -> None:
    given = [replace(two()[0], importance=3.0), two()[1]]
    members, shared = searched(given, tmp_path / "run", finetune=0)
    for joint, *own in zip(
        shared.search.scored, *(f.search.scored for f in shared.found), strict=True
    ):
        assert all(o.architecture == joint.architecture for o in own)
    with Journal.read(tmp_path / "run" / "journal.sqlite") as journal:
        for joint in shared.search.scored:
            losses = [journal.cost(f"loss of {m.task.name}", joint.architecture) for m in members]
            ratios = [(x or 0.0) / m.base.loss for x, m in zip(losses, members, strict=True)]
            assert joint.score == pytest.approx(-(3 * ratios[0] + ratios[1]))


def test_an_own_loss_and_an_own_score_decide_and_are_reported(tmp_path: Path) -> None:
    def loss(net: nn.Module) -> float:
        return float(sum(p.numel() for p in net.parameters()))

    def score(net: nn.Module) -> float:
        return -loss(net)

    given = [replace(t, loss=loss, score=score, validation=None) for t in two()]
    members, shared = searched(given, tmp_path / "run")
    for member, found, got in zip(members, shared.found, shared.losses, strict=True):
        assert member.request.score_name == "own"
        assert got == loss(found.model) == -found.score
        assert found.base_score == -member.base.loss


def test_fine_tuning_trains_each_task_on_its_own_data(tmp_path: Path) -> None:
    _, plain = searched(two(), tmp_path / "plain")
    _, tuned = searched(two(), tmp_path / "tuned", finetune=2, keep="last")
    assert tuned.search.best == plain.search.best
    for one, other in zip(plain.found, tuned.found, strict=True):
        weights = [dict(f.model.named_parameters())["body.2.0.weight"] for f in (one, other)]
        assert not torch.equal(*weights)


def wider() -> list[Task]:
    other = networks.Separable(2)
    other.body[4], other.head = networks.conv(32, 40, 1), nn.Linear(40, 2)
    return [two()[0], task("odd", other, 2)]


def deeper() -> list[Task]:
    other = networks.Separable(2)
    other.body.append(nn.Dropout(0.1))
    return [two()[0], task("odd", other, 2)]


def larger() -> list[Task]:
    return [two()[0], replace(two()[1], example=torch.zeros(1, 3, 16, 16))]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (wider, r"'kind' has the module 'body.4.0': Conv2d\(32, 48.*'odd' has .*Conv2d\(32, 40"),
        (deeper, r"'odd' has the module 'body.5': Dropout"),
        (larger, r"input 0 of torch.float32 \[3, 8, 8\], 'odd' has .*\[3, 16, 16\]"),
    ],
)
def test_the_first_difference_between_encoders_is_named(
    given: Callable[[], list[Task]], told: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=told):
        compress_multitask(given(), out=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()


def test_inputs_without_a_batch_have_one_shape_in_all_tasks() -> None:
    given = [
        replace(each, example=(torch.zeros(2, 3, 8, 8), torch.zeros(size)))
        for each, size in zip(two(), (5, 6), strict=True)
    ]
    with pytest.raises(AdapterError, match=r"input 1 .* \[5\] without a batch, 'odd' has .* \[6\]"):
        require_same_encoders(given)


class Doubled(networks.Separable):
    """Modules and tensors as in the others, and one operator more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2.0)


def test_encoders_whose_code_differs_are_not_delivered(tmp_path: Path) -> None:
    given = [two()[0], task("odd", Doubled(2), 2)]
    with pytest.raises(CheckError, match=r"operator 0 is Conv.* for task 'kind' and Mul"):
        compress_multitask(given, out=tmp_path / "run", **OPTIONS)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"journal.sqlite"}


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"name": "a/b"}, UsageError, "name of its folder|that of its folder"),
        ({"name": "odd"}, UsageError, "'odd' twice"),
        ({"name": "ODD"}, UsageError, "upper and lower"),
        ({"head": "top"}, UsageError, "its parts are body, head"),
        ({"head": ("body", "head")}, AdapterError, "share|more"),
        ({"importance": 0.0}, UsageError, "above 0"),
        ({"validation": None}, UsageError, "loss on validation data"),
        ({"calibration": []}, DataError, "task 'kind'"),
        ({"validation": [EXAMPLE]}, DataError, "task 'kind': .*targets"),
        ({"model": 3}, DataError, "torch.nn.Module"),
        ({"loss": lambda _: 0.0}, DataError, "above 0"),
    ],
)  # fmt: skip
def test_what_a_task_cannot_be_is_told(
    change: dict[str, Any], error: type[Exception], told: str, tmp_path: Path
) -> None:
    given = [replace(two()[0], **change), two()[1]]
    with pytest.raises(error, match=told):
        compress_multitask(given, out=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [[], two()[:1], "tasks", [1, 2]])
def test_one_task_or_something_else_is_told(given: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two or more"):
        compress_multitask(given, out=tmp_path / "run", **OPTIONS)


def test_what_a_budget_cannot_be_of_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"of the file that holds them all.*--joint"):
        compress_multitask(two(), out=tmp_path / "run", budget="latency=50%", per="all")
    with pytest.raises(UsageError, match="encoder or all"):
        compress_multitask(two(), out=tmp_path / "run", per="task", **OPTIONS)


def test_a_delivery_that_fails_leaves_the_journal_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver, calls = delivery.deliver, []

    def second_fails(*arguments: Any) -> RunSummary:
        calls.append(arguments)
        if len(calls) == 2:
            raise CheckError("no")
        return deliver(*arguments)

    monkeypatch.setattr(delivery, "deliver", second_fails)
    with pytest.raises(CheckError):
        compress_multitask(two(), out=tmp_path / "run", **OPTIONS)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"journal.sqlite"}


def test_the_summary_comes_back_from_its_file(
    done: compressor.MultitaskResult, tmp_path: Path
) -> None:
    assert MultitaskSummary.read(done.run) == done.summary
    page = (done.run / "report.html").read_text(encoding="utf-8")
    for name in ("kind", "odd", "deep"):
        assert f'href="{name}/report.html"' in page
    (tmp_path / "multitask.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(RunError, match="schema"):
        MultitaskSummary.read(tmp_path)
