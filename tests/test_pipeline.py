"""The whole chain on tiny networks: what a run promises, and what it leaves behind."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import compressor
from compressor.deploy import export
from compressor.deploy.export import ExportReport
from compressor.device.timing import Latency, Schedule
from compressor.errors import (
    AdapterError,
    BudgetError,
    CheckError,
    DataError,
    InfeasibleError,
    RunError,
    SearchError,
    UsageError,
)
from compressor.latency import cost as latency
from compressor.network.data import tensors_hash
from compressor.progress import Event
from compressor.report.result import RunSummary
from compressor.run import delivery, pipeline
from compressor.run.reading import Reading, read_network
from tests import networks

FILES = {
    "architecture.json", "journal.sqlite", "model.onnx", "model.safetensors", "report.html",
    "result.json",
}  # fmt: skip
EXAMPLE = torch.zeros(1, 3, 8, 8)


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return networks.Separable(4).eval()


def data(seed: int = 0, batches: int = 2) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 3, 8, 8, generator=rng), torch.randint(0, 4, (8,), generator=rng))
        for _ in range(batches)
    ]


class Score:
    """Prefers odd things, reproducibly; counts its calls and may misbehave at some of them."""

    def __init__(self, act: Callable[[int], float | None] = lambda _: None) -> None:
        self.calls = 0
        self._act = act

    def __call__(self, net: nn.Module) -> float:
        self.calls += 1
        special = self._act(self.calls)
        sizes = [p.numel() for p in net.parameters()]
        return sum(math.sin(n) for n in sizes) if special is None else special


def compress(out: Path, **changes: Any) -> compressor.Result:
    settings = {
        "model": model(),
        "example_input": EXAMPLE,
        "budget": "madds=50%",
        "calibration": data(),
        "evaluations": 8,
        "refit": False,  # tests that count calls of the score; `real` refits
        "out": out,
        **changes,
    }
    if "score" not in settings and "validation" not in settings:
        settings["score"] = Score()
    return compressor.compress(settings.pop("model"), settings.pop("example_input"), **settings)


def constant(milliseconds: float) -> Latency:
    m = milliseconds
    return Latency(m, m, m, m, m, 1, 1.0, 1.0, 1.0)


def without_export(patch: pytest.MonkeyPatch) -> None:
    """No export and no clock, for tests of what comes before them."""

    def write(model: nn.Module, example: Any, path: Path, **_: Any) -> ExportReport:
        path.write_bytes(b"onnx")
        return ExportReport(path, 18, 4, 0.0, (1,), ("x",))

    patch.setattr(delivery, "export_onnx", write)
    patch.setattr(delivery, "measure", lambda models, _, **__: dict.fromkeys(models, constant(1)))
    patch.setattr(delivery, "profile_models", lambda *_, **__: {})


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    without_export(monkeypatch)


def shares(ratio: float) -> dict[str, float]:
    return {"ratio": ratio, "ratio_low": ratio, "ratio_high": ratio}


def by_weights(models: Mapping[str, Any], *_: Any, **__: Any) -> dict[str, Latency]:
    """In place of a clock: a microsecond for each weight of the ONNX graph, and next to nothing."""
    times = {}
    for name, source in models.items():
        graph = (
            onnx.load_model_from_string(source) if isinstance(source, bytes) else onnx.load(source)
        ).graph
        times[name] = sum(math.prod(i.dims) for i in graph.initializer if len(i.dims) > 1) * 1e-3
        times[name] += 1e-6  # so that operators without weights take some time as well
    first = next(iter(times.values()))
    return {n: replace(constant(t), **shares(t / first)) for n, t in times.items()}


# ---- one real run


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    net = model().train()
    net.body[0][1].eval()
    before = tensors_hash(net.state_dict().items()), [m.training for m in net.modules()]
    events: list[Event] = []
    state = torch.get_rng_state()
    out = tmp_path_factory.mktemp("real") / "runs" / "mine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "_FINAL", Schedule(rounds=6, seconds=0.1))
        how = {"validation": data(1), "training": data(2), "finetune": 2, "refit": True}
        result = compress(out, model=net, evaluations=6, progress=events.append, **how)
    generator = bool(torch.equal(torch.get_rng_state(), state))
    after = tensors_hash(net.state_dict().items()), [m.training for m in net.modules()]
    return {"result": result, "net": net, "same": before == after, "events": events,
            "generator": generator}  # fmt: skip


def test_the_budget_is_kept_and_used(real: dict[str, Any]) -> None:
    summary = real["result"].summary
    assert 0.97 * 0.5 * summary.base.madds <= summary.best.madds <= 0.5 * summary.base.madds
    (row,) = summary.budgets
    assert row.met
    assert row.reached == summary.best.madds


def test_the_journal_tells_the_search(real: dict[str, Any]) -> None:
    result = real["result"]
    trace = compressor.read_trace(result.run)
    assert trace.pick is not None
    assert trace.pick.architecture == result.summary.architecture
    assert {e.source for e in trace.scored} > {"hints"}
    names = {layer.name: layer.options for layer in trace.layers}
    assert list(names) == [layer.name for layer in result.summary.widths]
    taken = zip(names.values(), trace.pick.architecture, strict=True)
    assert [options[o] for options, o in taken] == list(result.summary.choices.values())


def test_a_run_says_where_the_time_goes(real: dict[str, Any]) -> None:
    result = real["result"]
    profiles = result.summary.profiles
    assert list(profiles) == ["original", "compressed"]
    paths = {name for name, _ in real["net"].named_modules()}
    for profile in profiles.values():
        assert profile.ms > 0
        modules = {node.module for node in profile.nodes} - {""}
        assert {"body.0.0", "head"} & modules
        assert modules <= paths
    assert "Where the time goes" in (result.run / "report.html").read_text(encoding="utf-8")


def test_the_model_is_not_touched(real: dict[str, Any]) -> None:
    assert real["same"]
    assert all(p.grad is None and p.requires_grad for p in real["net"].parameters())
    assert not any(len(m._forward_pre_hooks) for m in real["net"].modules())


def test_torchs_generator_is_left_as_it_was(real: dict[str, Any]) -> None:
    assert real["generator"]


def test_a_run_holds_exactly_its_files(real: dict[str, Any]) -> None:
    result = real["result"]
    assert {p.name for p in result.run.iterdir()} == FILES
    assert RunSummary.read(result.run) == result.summary
    assert json.loads((result.run / "result.json").read_text())["schema"] == 1
    assert result.summary.best.file_bytes == result.onnx_path.stat().st_size


def test_the_figures_are_those_of_the_network(real: dict[str, Any]) -> None:
    result = real["result"]
    best = result.summary.best
    assert best.params == sum(p.numel() for p in result.model.parameters())
    assert best.score == compressor.score.judge.top1(result.model, data(1))
    assert result.summary.base.score == compressor.score.judge.top1(real["net"], data(1))
    assert result.summary.evaluations == len(result.summary.scored) == 6
    costs = [p.madds for p in result.frontier]
    scores = [p.score for p in result.frontier]
    assert costs == sorted(costs)
    assert scores == sorted(scores)


def test_onnx_gives_the_outputs_and_says_where_it_came_from(real: dict[str, Any]) -> None:
    result = real["result"]
    x = data(5)[0][0]
    session = onnxruntime.InferenceSession(str(result.onnx_path))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, result.model(x).numpy(), atol=1e-5)
    notes = session.get_modelmeta().custom_metadata_map
    assert notes["compressor.architecture"] == ",".join(map(str, result.summary.architecture))
    assert notes["compressor.budget"] == "madds=50%"
    assert notes["compressor.original_sha256"] == tensors_hash(real["net"].state_dict().items())


def test_loading_gives_the_network_again(real: dict[str, Any]) -> None:
    result = real["result"]
    loaded = compressor.load(result.run, networks.Separable(4))
    x = data(5)[0][0]
    with torch.no_grad():
        assert torch.equal(loaded(x), result.model(x))


def test_exporting_again_keeps_what_the_file_says(real: dict[str, Any]) -> None:
    result = real["result"]
    before = {p.key: p.value for p in onnx.load(result.onnx_path).metadata_props}
    report = compressor.export_run(result.run, model(7), EXAMPLE, dynamic_batch=False)
    assert report.path == result.onnx_path
    assert {p.key: p.value for p in onnx.load(report.path).metadata_props} == before


def test_progress_tells_every_stage(real: dict[str, Any]) -> None:
    stages = list(dict.fromkeys(e.stage for e in real["events"]))
    wanted = ["check", "read", "verify", "score the original", "data", "library", "sensitivity"]
    wanted += ["search", "probe", "refit", "fine-tune", "export", "profile", "measure"]
    assert stages == wanted
    search = [e for e in real["events"] if e.stage == "search"]
    assert [e.done for e in search] == list(range(7))
    assert "best score in budget" in search[-1].note


# ---- other budgets, data and networks


@pytest.mark.usefixtures("stub")
def test_several_budgets_hold_together(tmp_path: Path) -> None:
    summary = compress(tmp_path / "run", budget=["madds=60%", "params=40%"]).summary
    assert [row.met for row in summary.budgets] == [True, True]
    assert summary.best.params <= 0.4 * summary.base.params
    assert summary.best.madds <= 0.6 * summary.base.madds
    assert max(row.reached / row.limit for row in summary.budgets) >= 0.97


@pytest.mark.usefixtures("stub")
def test_a_range_is_kept_at_both_ends(tmp_path: Path) -> None:
    summary = compress(tmp_path / "run", budget="madds=35%..50%, params=20%..90%").summary
    for row, cost in zip(summary.budgets, ("madds", "params"), strict=True):
        assert row.low is not None
        assert row.met
        assert row.low <= getattr(summary.best, cost) <= row.limit
    assert " to " in summary.budgets[0].allowed
    assert not replace(summary.budgets[0], reached=1.0).met
    with pytest.raises(InfeasibleError, match="widen the range of params"):
        compress(tmp_path / "other", budget="madds=35%, params=90%..95%")


@pytest.mark.usefixtures("stub")
def test_a_budget_of_parameters(tmp_path: Path) -> None:
    summary = compress(tmp_path / "run", budget="params=1500").summary
    assert 0.97 * 1500 <= summary.best.params <= 1500
    assert summary.budgets[0].limit == 1500


@pytest.mark.parametrize("budget", ["latency=2ms", "latency=60%, madds=60%"])
def test_a_budget_of_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: str) -> None:
    monkeypatch.setattr(latency, "measure", by_weights)
    monkeypatch.setattr(delivery, "measure", by_weights)
    result = compress(tmp_path / "run", budget=budget)
    assert all(row.met for row in result.summary.budgets)
    row = result.summary.budgets[0]
    assert row.unit == "latency"
    assert row.reached == pytest.approx(by_weights({"a": result.onnx_path})["a"].median_ms)
    assert result.summary.best.madds < result.summary.base.madds
    trace = compressor.read_trace(result.run)
    assert trace.budgets[0][0].measured
    assert trace.pick is not None
    assert len(trace.scored) == result.summary.evaluations


def test_times_of_operators_are_kept_for_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run, of another seed, times whole networks only: near the budget, at the end."""
    asked: list[int] = []

    def counted(models: Mapping[str, Any], *_: Any, **__: Any) -> dict[str, Latency]:
        asked.append(len(models))
        return by_weights(models)

    monkeypatch.setattr(latency, "measure", counted)
    monkeypatch.setattr(delivery, "measure", by_weights)
    times = []
    for seed in (0, 1):
        asked.clear()
        compress(
            tmp_path / f"run{seed}", budget="latency=60%", evaluations=3, seed=seed,
            latency_folder=tmp_path / "times",
        )  # fmt: skip
        times.append(sum(asked))
    assert len(list((tmp_path / "times").iterdir())) == 1
    near, taken = 8 * 2, 4 * 2  # each beside the original
    assert times[1] <= near + taken + 8 < times[0]


@pytest.mark.usefixtures("stub")
def test_a_latency_that_the_final_measurement_does_not_confirm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(models: Mapping[str, Any], *_: Any, **__: Any) -> dict[str, Latency]:
        return {n: replace(constant(9), ratio=1.0) for n in models}

    monkeypatch.setattr(latency, "measure", by_weights)
    monkeypatch.setattr(delivery, "measure", busy)
    with pytest.raises(CheckError, match=r"allows 2 ms, but .* measured at 9 ms"):
        compress(tmp_path / "run", budget="latency=2ms", evaluations=2)
    # what did not keep its promise must not look finished
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["journal.sqlite"]


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("budget", ["latency=2ms", "latency=60%"])
def test_a_final_latency_is_measured_again_before_it_misses_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: str
) -> None:
    """Each time the median keeps the budget, the upper end of its interval only at last."""
    uppers = iter([3.0, 3.0, 1.0])

    def noisy(models: Mapping[str, Any], *_: Any, **__: Any) -> dict[str, Latency]:
        upper = next(uppers)
        small = Latency(1.9, 1.9, 1.9, 1.9, 1.9 * upper, 30, 0.5, 0.5, 0.5 * upper)
        return {"original": constant(3.8), "compressed": small}

    monkeypatch.setattr(latency, "measure", by_weights)
    monkeypatch.setattr(delivery, "measure", noisy)
    (row,) = compress(tmp_path / "run", budget=budget, evaluations=2).summary.budgets
    assert row.met
    assert row.upper == pytest.approx(1.9)
    assert next(uppers, None) is None


class TwoInputs(nn.Module):
    """Two images in, a dictionary out."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = networks.conv(3, 16), networks.conv(3, 16)
        self.join = networks.conv(16, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        features = self.join(self.left(left) + self.right(right)).mean((2, 3))
        return {"logits": self.head(features), "features": features.mean(1, keepdim=True)}


@pytest.mark.parametrize("score_epochs", [0, 1])
def test_two_inputs_a_dictionary_and_no_labels(tmp_path: Path, score_epochs: int) -> None:
    torch.manual_seed(0)
    pairs = [(x, x.flip(0)) for x, _ in data()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "measure", by_weights)
        result = compress(
            tmp_path / "run", model=TwoInputs(), example_input=(EXAMPLE, EXAMPLE),
            calibration=[(pair,) for pair in pairs], score=Score(), score_epochs=score_epochs,
            evaluations=3,
        )  # fmt: skip
    assert result.summary.budgets[0].met
    assert result.summary.failed == 0
    loaded = compressor.load(result.run, TwoInputs())
    with torch.no_grad():
        assert torch.equal(loaded(*pairs[0])["logits"], result.model(*pairs[0])["logits"])


@pytest.mark.usefixtures("stub")
def test_epochs_before_each_score_are_reproducible(tmp_path: Path) -> None:
    runs = [
        compress(tmp_path / name, validation=data(1), score_epochs=1, evaluations=4)
        for name in ("a", "b")
    ]
    states = [tensors_hash(r.model.state_dict().items()) for r in runs]
    assert states[0] == states[1]
    assert runs[0].summary.scored == runs[1].summary.scored
    assert "fine-tune" in runs[0].summary.stages


@pytest.mark.usefixtures("stub")
def test_scores_that_are_tensors_and_data_that_comes_once(tmp_path: Path) -> None:
    seen: list[float] = []

    def score(net: nn.Module) -> Tensor:
        seen.append(1.0)
        return net(data()[0][0]).square().mean()  # with a gradient, as users write it

    summary = compress(tmp_path / "run", calibration=iter(data()), score=score).summary
    assert summary.failed == 0
    assert len(seen) == summary.evaluations + 2


# ---- resuming


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, int]:
    """Architecture and score calls of a run that nobody interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        without_export(patch)
        score = Score()
        result = compress(tmp_path_factory.mktemp("whole") / "run", score=score)
    return result, score.calls


def interrupted(at: int) -> Score:
    def act(call: int) -> None:
        if call == at:
            raise KeyboardInterrupt

    return Score(act)


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("at", [3, 6, 9])
def test_an_interrupted_run_resumes_without_repeating(
    tmp_path: Path, whole: tuple[Any, int], at: int
) -> None:
    result, calls = whole
    first, second = interrupted(at), Score()
    with pytest.raises(KeyboardInterrupt):
        compress(tmp_path / "run", score=first)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"journal.sqlite"}
    events: list[Event] = []
    resumed = compress(tmp_path / "run", score=second, progress=events.append)
    # the original and the network that was found are scored again, the interrupted one once more
    assert first.calls + second.calls == calls + 2
    assert resumed.summary.architecture == result.summary.architecture
    assert resumed.summary.scored == result.summary.scored
    told = [
        (e.number, e.costs["madds"], e.score) for e in compressor.read_trace(resumed.run).scored
    ]
    assert told == [(e.order, e.cost, e.score) for e in resumed.summary.scored]
    searched = [e for e in events if e.stage == "search"]
    assert (searched[0].done, "resumed" in searched[0].note) == (at - 2, True)


@pytest.mark.usefixtures("stub")
def test_an_interrupt_before_the_first_score_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compress(tmp_path / "run", score=interrupted(2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("stub")
def test_a_finished_run_is_not_searched_again(tmp_path: Path) -> None:
    compress(tmp_path / "run")
    score = Score()
    compress(tmp_path / "run", score=score)
    assert score.calls == 2
    assert {p.name for p in (tmp_path / "run").iterdir()} == FILES


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.test_pipeline import Score, compress

def act(call):
    if call == 5:
        os.kill(os.getpid(), signal.SIGKILL)

compress(Path(sys.argv[1]), score=Score(act))
"""


@pytest.mark.usefixtures("stub")
def test_a_killed_run_resumes(tmp_path: Path, whole: tuple[Any, int]) -> None:
    result, calls = whole
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run")],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False, capture_output=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    score = Score()
    resumed = compress(tmp_path / "run", score=score)
    assert score.calls == calls - 3
    assert resumed.summary.architecture == result.summary.architecture


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": model(1)}, "model was"),
        ({"calibration": data(9)}, "calibration data was"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"score_epochs": 2}, "score_epochs was 0 and is now 2"),
        ({"budget": "madds=60%"}, "budget was"),
        ({"score": "agreement"}, 'score was "own" and is now "agreement"'),
        ({"ranking": "bn_scale"}, 'ranking was "magnitude" and is now "bn_scale"'),
    ],
)
def test_another_run_does_not_resume(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        compress(tmp_path / "run", score=interrupted(4))
    before = (tmp_path / "run" / "journal.sqlite").read_bytes()
    with pytest.raises(RunError, match=named):
        compress(tmp_path / "run", **changes)
    assert (tmp_path / "run" / "journal.sqlite").read_bytes() == before


@pytest.mark.usefixtures("stub")
def test_choices_with_other_meanings_do_not_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*args: Any, **how: Any) -> Reading:
        """As many choices, but the smallest keeps a channel fewer."""
        found = read_network(*args, **how)
        first, *rest = found.space.layers
        small = replace(first.choices[0], channels=(first.choices[0].channels or 0) - 1)
        changed = replace(first, choices=(small, *first.choices[1:]))
        return replace(found, space=replace(found.space, layers=(changed, *rest)))

    with pytest.raises(KeyboardInterrupt):
        compress(tmp_path / "run", score=interrupted(4))
    monkeypatch.setattr(pipeline, "read_network", other)
    with pytest.raises(RunError, match="search space was"):
        compress(tmp_path / "run")


class Padding(nn.Conv2d):
    """Computes something of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


@pytest.mark.usefixtures("stub")
def test_what_could_not_be_refitted_or_ranked_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), Padding(16, 16, 3), nn.ReLU(), nn.Flatten(1),
        nn.Linear(16 * 36, 4),
    ).eval()  # fmt: skip
    found = compressor.inspect(net, EXAMPLE)
    summary = compress(tmp_path / "run", model=net, refit=True, ranking="bn_scale", batch=3).summary
    assert [part.name for part in summary.sliced] == ["2"]
    assert "Padding computes something of its own" in summary.sliced[0].reason
    assert found.sliced == summary.sliced
    assert found.to_json()["sliced"] == [{"name": "2", "reason": summary.sliced[0].reason}]
    assert {part.name for part in summary.unranked} == {"0", "2"}
    assert summary.settings["ranking"] == "bn_scale"
    assert (summary.settings["batch"], summary.settings["workers"]) == (3, 1)


def test_an_unknown_ranking_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a ranking must be one of reconstruction, magnitude"):
        compress(tmp_path / "run", ranking="best")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("stub")
def test_other_validation_data_does_not_resume(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.stage == "search" and event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(tmp_path / "run", validation=data(1), progress=stop)
    with pytest.raises(RunError, match="validation data was"):
        compress(tmp_path / "run", validation=data(2))


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize(
    ("how", "name"),
    [
        ({"validation": data(1)}, "top1"),
        ({"validation": data(1), "score": "agreement"}, "agreement"),
        ({"validation": data(1), "score": "loss"}, "loss"),
        ({"validation": [x for x, _ in data(1)]}, "agreement"),
        ({"validation": None}, "top1"),
        ({"validation": None, "calibration": [x for x, _ in data()]}, "agreement"),
        ({"score": Score()}, "own"),
    ],
)
def test_the_score_that_judged_is_named(tmp_path: Path, how: dict[str, Any], name: str) -> None:
    summary = compress(tmp_path / "run", refit=True, evaluations=2, **how).summary
    assert summary.settings["score"] == name
    assert summary.base.score == (0.0 if name == "agreement" else summary.base.score)


@pytest.mark.usefixtures("stub")
def test_a_shuffling_loader_resumes(tmp_path: Path) -> None:
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def loader() -> DataLoader[Any]:
        return DataLoader(TensorDataset(x), batch_size=8, shuffle=True)

    with pytest.raises(KeyboardInterrupt):
        compress(tmp_path / "run", calibration=loader(), score=interrupted(4))
    torch.manual_seed(123)
    score = Score()
    compress(tmp_path / "run", calibration=loader(), score=score)
    assert score.calls == 8


# ---- what fails, and leaves nothing


def failing(_: nn.Module) -> float:
    raise ZeroDivisionError("no images")


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "infeasible": ({"budget": "madds=1%"}, InfeasibleError, r"cheapest network found has \d"),
    "contradiction": ({"budget": ["madds=50%", "madds=1M"]}, BudgetError, "one limit"),
    "met": ({"budget": "params=1G"}, BudgetError, "already meets the budget"),
    "no budget": ({"budget": ""}, BudgetError, "at least one budget"),
    "score raises": ({"score": failing}, DataError, "ZeroDivisionError: no images"),
    "score is NaN": ({"score": lambda _: math.nan}, DataError, "finite number"),
    "score is text": ({"score": lambda _: "good"}, DataError, "returned 'good'"),
    "nothing to judge by": (
        {"validation": None, "calibration": [data()[0][0][:1]]}, DataError, "at least two inputs",
    ),
    "no such score": ({"score": "best"}, UsageError, "must be one of top1, loss, agreement"),
    "no model": ({"model": model}, DataError, "must be a torch.nn.Module"),
    "no example": ({"example_input": 3}, DataError, "example input must be a tensor"),
    "wrong example": ({"example_input": torch.zeros(1, 5, 8, 8)}, DataError, r"\[1, 5, 8, 8\]"),
    "no calibration": ({"calibration": []}, DataError, "calibration data .* is empty"),
    "another size": (
        {"calibration": [(torch.zeros(4, 3, 12, 12), torch.zeros(4, dtype=torch.long))] * 2},
        DataError,
        r"example's are \[\[3, 8, 8\]\] and the calibration data's \[\[3, 12, 12\]\]",
    ),
    "wrong calibration": ({"calibration": [torch.zeros(2, 9)]}, DataError, r"\[2, 9\]"),
    "no validation": ({"validation": []}, DataError, "validation data .* is empty"),
    "no labels": ({"validation": [data()[0][0]], "score": "top1"}, DataError, "inputs alone"),
    "no training": ({"training": []}, DataError, "training data .* is empty"),
    "no evaluations": ({"evaluations": 0}, UsageError, "evaluations must be at least 1"),
    "minus one epoch": ({"finetune": -1}, UsageError, "finetune must be at least 0"),
    "no adapter": ({"adapter": "mine"}, UsageError, "an adapter must be one of generic"),
    "no threads": (
        {"threads": 0, "budget": "latency=50%"}, UsageError, "threads must be at least 1",
    ),
    "nothing to cut": (
        {"model": nn.Sequential(nn.Flatten(), nn.Linear(192, 4))}, AdapterError, "search layer",
    ),
    "every candidate fails": (
        {"score": Score(lambda call: None if call == 1 else math.nan)},
        SearchError, "finite number, but got nan",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_nothing(tmp_path: Path, case: str) -> None:
    changes, kind, said = REFUSED[case]
    with pytest.raises(kind, match=said):
        compress(tmp_path / "runs" / "run", **copy.copy(changes))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="holds other files"):
        compress(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.usefixtures("stub")
def test_candidates_that_fail_are_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    def act(call: int) -> float | None:
        if call == 3:
            raise MemoryError("too large")
        return math.nan if call == 5 else None

    summary = compress(tmp_path / "run", score=Score(act)).summary
    assert (summary.evaluations, summary.failed) == (6, 2)
    # a resumed run knows the failures
    score = Score()
    assert compress(tmp_path / "run", score=score).summary.failed == 2
    assert score.calls == 2


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("value", [math.nan, "raise"])
def test_a_score_that_fails_at_the_very_end_is_a_message(tmp_path: Path, value: Any) -> None:
    def act(call: int) -> float | None:
        if call == 10 and value == "raise":
            raise OSError("images are gone")
        return math.nan if call == 10 else None

    with pytest.raises(DataError, match="the network that was found"):
        compress(tmp_path / "run", score=Score(act))
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"journal.sqlite"}


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("bad", [(0,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_end_does_without_networks_whose_score_is_not_finite(
    tmp_path: Path, bad: tuple[int, ...], value: float
) -> None:
    # the original, two candidates, and three forms of the network that was found
    forms = [10.0, 30.0, 20.0]
    ends = [value if i in bad else score for i, score in enumerate(forms)]
    score = Score(lambda call: ends[call - 4] if call > 3 else None)
    settings = {"score": score, "refit": True, "evaluations": 2}
    if len(bad) == len(forms):
        with pytest.raises(DataError, match=f"for the network that was found it returned {value}"):
            compress(tmp_path / "run", **settings)
    else:
        left = [score for i, score in enumerate(forms) if i not in bad]
        assert compress(tmp_path / "run", **settings).summary.best.score == max(left)
    assert score.calls == 6


@pytest.mark.parametrize("at", [1, 2])
def test_onnx_that_disagrees_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    calls: list[int] = []

    def compare(*_: Any) -> float:
        calls.append(1)
        if len(calls) == at:
            raise CheckError("ONNX Runtime and torch must agree, but differ by 0.5")
        return 0.0

    monkeypatch.setattr(export, "largest_difference", compare)
    with pytest.raises(CheckError, match=r"differ by 0\.5"):
        compress(tmp_path / "run", evaluations=2)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"journal.sqlite"}


# ---- inspecting


def test_inspect_shows_plain_values() -> None:
    found = pipeline.inspect(model(), EXAMPLE)
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["madds"] == found.madds
    assert [x["name"] for x in plain["layers"]] == [layer.name for layer in found.layers]
    assert 0.9 < found.share <= 1
    assert found.least_madds < found.madds / 2
    assert found.thop_madds is not None
    assert found.thop_madds >= found.madds
    assert plain["frozen"][0]["reason"]


def test_inspect_without_a_second_opinion(monkeypatch: pytest.MonkeyPatch) -> None:
    import thop  # noqa: PLC0415

    def fails(*_: Any, **__: Any) -> None:
        raise KeyError("no rule")

    monkeypatch.setattr(thop, "profile", fails)
    found = pipeline.inspect(model(), EXAMPLE)
    assert found.thop_madds is None
    assert "KeyError" in found.thop_note
