"""Quantised files: close to the float file, scored in the runtime, with budgets of their own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import compressor
from cli.main import main
from cli.tables import closing_table
from compressor.budget import parse_budgets
from compressor.deploy import int8
from compressor.deploy.export import export_base, export_onnx
from compressor.deploy.int8 import (
    FLOOR,
    INT8,
    Int8,
    RuntimeNetwork,
    explained,
    quantised_network,
    score_of_file,
)
from compressor.deploy.quantise import quantise, quantise_for_timing
from compressor.device.measure import Settings, create_session, run_session
from compressor.device.profiling import profile_models
from compressor.device.timing import Schedule
from compressor.errors import BudgetError, CheckError, DataError, ExportError, UsageError
from compressor.latency import cost as latency
from compressor.limits import resolve_budgets
from compressor.progress import silent
from compressor.report.overview import Overview
from compressor.report.page import overview_table
from compressor.report.result import Figures, RunSummary
from compressor.run import delivery, pipeline
from compressor.run.reading import read_network
from compressor.score.judge import make_judge
from tests import networks
from tests.test_pipeline import by_weights, compress, data, model

EXAMPLE = torch.zeros(1, 3, 8, 8)


def batches(seed: int = 0, count: int = 2) -> list[Tensor]:
    return [inputs for inputs, _ in data(seed, count)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    export_onnx(model(), (EXAMPLE,), path, metadata={"compressor.budget": "madds=50%"})
    return path


@pytest.fixture(scope="module")
def quantised(source: Path) -> Int8:
    return quantised_network(source, batches(), Settings())


def ops(data: bytes) -> list[str]:
    return sorted(node.op_type for node in onnx.load_from_string(data).graph.node)


def test_weights_are_int8_for_each_channel_and_activations_uint8(quantised: Int8) -> None:
    graph = onnx.load_from_string(quantised.data).graph
    weights = {t.name: t for t in graph.initializer}
    (first,) = [t for name, t in weights.items() if name == "body.0.0.weight_quantized"]
    assert first.data_type == onnx.TensorProto.INT8
    assert list(weights["body.0.0.weight_scale"].dims) == [16]
    zeros = [t for name, t in weights.items() if name.startswith("x_zero")]
    assert [t.data_type for t in zeros] == [onnx.TensorProto.UINT8]


def test_the_file_answers_like_the_float_file(source: Path, quantised: Int8) -> None:
    new = batches(seed=3, count=1)[0].numpy()
    pair = [run_session(create_session(m, Settings()), [new])[0] for m in (source, quantised.data)]
    assert pair[0].shape == pair[1].shape == (8, 4)
    assert explained(*pair) > 0.95
    assert quantised.explained > 0.95
    kept = {p.key: p.value for p in onnx.load_from_string(quantised.data).metadata_props}
    assert kept["compressor.budget"] == "madds=50%"


def test_the_file_is_valid_onnx_and_its_operators_know_their_modules(quantised: Int8) -> None:
    onnx.checker.check_model(onnx.load_from_string(quantised.data))
    found = profile_models({"int8": quantised.data}, Settings(), runs=2)["int8"]
    convolutions = [n for n in found.nodes if "Conv" in n.kind]
    assert {n.module for n in convolutions} == {f"body.{i}.0" for i in range(5)}
    assert all(n.kind.endswith(("3x3", "depthwise", "1x1")) for n in convolutions)


def test_inputs_and_outputs_keep_their_names_and_sizes(source: Path, quantised: Int8) -> None:
    for ends in ("input", "output"):
        old = getattr(onnx.load(source).graph, ends)
        new = getattr(onnx.load_from_string(quantised.data).graph, ends)
        assert [(v.name, v.type) for v in old] == [(v.name, v.type) for v in new]


def test_for_timing_the_graph_is_the_same_but_for_its_figures(
    source: Path, quantised: Int8
) -> None:
    made_up = quantise_for_timing(source.read_bytes())
    assert ops(made_up) == ops(quantised.data)
    shapes = [
        {t.name: (t.data_type, tuple(t.dims)) for t in onnx.load_from_string(d).graph.initializer}
        for d in (made_up, quantised.data)
    ]
    assert shapes[0] == shapes[1]
    create_session(made_up, Settings())


def test_no_more_batches_are_read_than_are_looked_at(source: Path) -> None:
    seen = []

    class Endless:
        def __iter__(self) -> Iterator[Tensor]:
            while True:
                seen.append(1)
                yield torch.randn(8, 3, 8, 8)

    quantised_network(source, Endless(), Settings(), images=20)
    assert len(seen) == 3


def test_nothing_is_printed_and_logging_is_left_as_it_was(
    source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = logging.root.manager.disable, list(logging.root.handlers)
    quantise(source.read_bytes(), [[b.numpy()] for b in batches()])
    assert (logging.root.manager.disable, list(logging.root.handlers)) == before
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_quantised_is_an_error_with_a_remedy() -> None:
    for made in (quantise_for_timing, lambda d: quantise(d, [[np.zeros((1, 3), np.float32)]])):
        with pytest.raises(ExportError, match=r"cannot be quantised.*leave --int8 off"):
            made(b"no model at all")


def test_without_calibration_data_there_is_no_range(source: Path) -> None:
    with pytest.raises(DataError, match="calibration"):
        quantised_network(source, [], Settings())


def test_a_file_that_no_longer_computes_the_network_is_refused(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "quantise", lambda model, *_: quantise_for_timing(model))
    with pytest.raises(CheckError, match=rf"at least {FLOOR:.0%}.*more calibration data"):
        quantised_network(source, batches(), Settings())


def test_a_file_with_other_outputs_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.onnx"
    export_onnx(networks.Separable(7).eval(), (EXAMPLE,), other)
    monkeypatch.setattr(int8, "quantise", lambda *_: other.read_bytes())
    with pytest.raises(CheckError, match="shapes"):
        quantised_network(source, batches(), Settings())


@pytest.mark.parametrize(
    ("expected", "found", "share"),
    [
        ([1, 2, 3], [1, 2, 3], 1),
        ([1, 2, 3], [2, 2, 2], 0),
        ([1, 2, 3], [3, 2, 1], -3),
        ([5, 5], [5, 5], 1),
        ([0, 0], [0, 0], 1),
    ],
)
def test_share_explained(expected: list[float], found: list[float], share: float) -> None:
    assert explained(np.array(expected, float), np.array(found, float)) == pytest.approx(share)


def test_nothing_explains_what_is_not_finite_or_constant() -> None:
    assert np.isnan(explained(np.array([1.0, 2]), np.array([1.0, np.nan])))
    assert explained(np.array([5.0, 5]), np.array([5.0, 6])) < FLOOR
    assert explained(np.zeros(2), np.ones(2)) < FLOOR


class Nested(nn.Module):
    """A mapping of outputs, one of them no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = model()

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"logits": self.inner(x), "none": None, "more": [self.inner(x) * 2]}


def test_outputs_are_nested_like_the_networks(tmp_path: Path) -> None:
    net = Nested().eval()
    export_onnx(net, (EXAMPLE,), tmp_path / "nested.onnx")
    session = create_session(tmp_path / "nested.onnx", Settings())
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        found, expected = RuntimeNetwork(session, net, (EXAMPLE,))(x), net(x)
    assert found["none"] is None
    torch.testing.assert_close(found["logits"], expected["logits"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["more"][0], expected["more"][0], atol=1e-5, rtol=1e-4)


def test_any_score_can_judge_a_file(quantised: Int8) -> None:
    def own(net: nn.Module) -> float:
        place = next(net.parameters()).device
        return float(net(torch.ones(2, 3, 8, 8, device=place)).sum())

    how = (model(), (EXAMPLE,), Settings())
    assert np.isfinite(score_of_file(own, quantised, *how))
    judge = make_judge("agreement", batches(1), model())
    assert -0.1 < score_of_file(judge, quantised, *how) <= 0
    with pytest.raises(DataError, match="no layers to look at"):
        score_of_file(lambda net: float(net.body[0].numel()), quantised, *how)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> compressor.Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "_FINAL", Schedule(rounds=6, seconds=0.1))
        out = tmp_path_factory.mktemp("int8") / "run"
        return compress(out, validation=data(1), evaluations=4, refit=True, int8=True)


def test_a_run_delivers_the_quantised_file(real: compressor.Result) -> None:
    summary = real.summary
    assert real.int8_path == real.run / INT8
    assert summary.int8 is not None
    assert summary.int8.file_bytes == real.int8_path.stat().st_size
    assert summary.int8.madds == summary.best.madds
    assert RunSummary.read(real.run) == summary
    assert list(summary.profiles) == ["original", "compressed", "int8"]
    assert summary.settings["int8"] is True


def test_the_score_of_the_quantised_file_is_the_runtimes(real: compressor.Result) -> None:
    session = create_session(real.run / INT8, Settings())
    hits = [
        (run_session(session, [x.numpy()])[0].argmax(1) == y.numpy()).mean() for x, y in data(1)
    ]
    assert real.summary.int8 is not None
    assert real.summary.int8.score == pytest.approx(np.mean(hits))


def test_report_and_table_show_it(real: compressor.Result) -> None:
    assert ">int8</th>" in (real.run / "report.html").read_text(encoding="utf-8")
    summary = real.summary
    with_it = closing_table(summary.base, summary.best, "top1", summary.int8)
    without = closing_table(summary.base, summary.best, "top1")
    assert [len(t.columns) for t in (with_it, without)] == [6, 4]


def test_a_run_without_it_leaves_none_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "measure", by_weights)
    compress(tmp_path / "run", int8=True, evaluations=2, score=_counted)
    assert (tmp_path / "run" / INT8).exists()
    result = compress(tmp_path / "run", evaluations=2, score=_counted)
    assert result.int8_path is None
    assert result.summary.int8 is None
    assert not (tmp_path / "run" / INT8).exists()


def _counted(net: nn.Module) -> float:
    return float(net(torch.ones(1, 3, 8, 8)).shape[1])


def quartered(models: dict[str, Any], *how: Any, **more: Any) -> Any:
    """In place of a clock: a weight of 8 bits takes a quarter of one in single precision."""
    times = {}
    for name, source in models.items():
        graph = (
            onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(source)
        ).graph
        times[name] = sum(
            float(np.prod(t.dims)) * (0.25 if t.data_type == onnx.TensorProto.INT8 else 1) * 1e-3
            for t in graph.initializer
            if len(t.dims) > 1
        )
    found = by_weights(models)
    first = next(iter(times.values()))
    return {
        name: type(f)(t, t, t, t, t, 1, t / first, t / first, t / first)
        for (name, f), t in zip(found.items(), times.values(), strict=True)
    }


def test_a_latency_budget_is_the_quantised_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "measure", quartered)
    monkeypatch.setattr(delivery, "measure", quartered)
    summary = compress(tmp_path / "run", budget="latency=15%", int8=True).summary
    (row,) = summary.budgets
    assert summary.int8 is not None
    assert row.met
    assert row.reached == summary.int8.latency_ms
    assert row.limit == pytest.approx(0.15 * summary.base.latency_ms)  # of the original as it is
    assert summary.best.latency_ms > row.limit
    trace = compressor.read_trace(tmp_path / "run")
    assert trace.pick is not None
    assert trace.pick.architecture == summary.architecture
    with pytest.raises(UsageError, match="int8"):
        compress(tmp_path / "run", budget="latency=15%")


def test_a_budget_that_quantising_alone_meets_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "measure", quartered)
    with pytest.raises(BudgetError, match="as it would be delivered, already meets"):
        compress(tmp_path / "run", budget="latency=50%", int8=True)
    assert not (tmp_path / "run").exists()


def test_a_score_that_looks_at_layers_is_refused_before_the_search(tmp_path: Path) -> None:
    calls = []

    def looks(net: nn.Module) -> float:
        calls.append(net)
        return float(net.body[0][0].out_channels)

    with pytest.raises(DataError, match="no layers to look at"):
        compress(tmp_path / "run", score=looks, int8=True)
    assert len(calls) == 2
    assert not (tmp_path / "run").exists()


def test_a_network_that_cannot_be_quantised_is_refused_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: bytes) -> bytes:
        raise ExportError("cannot be quantised")

    monkeypatch.setattr(int8, "quantise_for_timing", refuse)
    with pytest.raises(ExportError, match="cannot be quantised"):
        compress(tmp_path / "run", score=_counted, int8=True)
    assert not (tmp_path / "run").exists()


def test_every_network_of_a_frontier_has_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "measure", by_weights)
    result = compress(
        tmp_path / "run", budget=(), frontier="madds=80%,50%", evaluations=4, score=_counted,
        int8=True,
    )  # fmt: skip
    overview = Overview.read(result.run)
    for point, row in zip(result.points, overview.rows, strict=True):
        assert point.int8_path == result.run / row.folder / INT8
        assert point.int8_path.exists()
        assert row.int8 == point.summary.int8 is not None


def test_a_candidate_is_timed_in_the_form_that_is_delivered(real: compressor.Result) -> None:
    space = read_network(model(), (EXAMPLE,), "generic", silent).space
    cut = export_base(model(), (EXAMPLE,)).slice(space, real.summary.architecture)

    def weights(data: bytes) -> list[tuple[int, ...]]:
        graph = onnx.load_from_string(data).graph
        return [tuple(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.INT8]

    timed, delivered = quantise_for_timing(cut), (real.run / INT8).read_bytes()
    # The exporter leaves out biases that are zero, and with them what would dequantise them.
    runs = [[op for op in ops(data) if op != "DequantizeLinear"] for data in (timed, delivered)]
    assert runs[0] == runs[1]
    assert sorted(weights(timed)) == sorted(weights(delivered))


def test_shares_are_of_what_a_cost_says_they_are() -> None:
    class Cost:
        unit, monotone = "latency", False

        def __call__(self, _: tuple[int, ...]) -> float:
            return 3.0

        def reference(self) -> float:
            return 10.0

    (resolved,) = resolve_budgets(parse_budgets("latency=20%"), {"latency": Cost()}, (0,))
    assert (resolved.high, resolved.original) == (2.0, 3.0)


def test_a_run_is_exported_again_quantised(real: compressor.Result) -> None:
    (real.run / INT8).unlink()
    pipeline.export_run(real.run, model(), EXAMPLE, calibration=batches(), int8=True)
    assert (real.run / INT8).stat().st_size > 0
    with pytest.raises(UsageError, match="static batch"):
        pipeline.export_run(real.run, model(), EXAMPLE, dynamic_batch=False, int8=True)


def test_the_overview_of_a_frontier_has_columns_for_it() -> None:
    base = Figures(10, 10, 0.9, 2.0, 100)
    row = {"budget": "madds=50%", "folder": "a", "best": {"madds": 5, "params": 5}}
    plain = {"schema": 1, "base": {"madds": 10, "params": 10}, "rows": [row], "evaluations": 1,
             "failed": 0, "seconds": 1.0}  # fmt: skip
    assert "int8 score" not in next(overview_table(Overview.from_json(plain)))
    row["int8"] = {"madds": 5, "params": 5, "score": 0.75, "latency_ms": 0.5}
    titles, original, found = overview_table(Overview.from_json(plain))
    assert titles[-3:] == ("int8 score", "int8 latency", "Folder")
    assert original[-3:] == ("–", "–", "–")
    assert found[-3:] == ("0.75", "0.5 ms", "a")
    assert base.score == 0.9


def test_the_command_line_passes_it_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def stop(*_: Any, **how: Any) -> None:
        seen.update(how)
        raise CheckError("far enough")

    monkeypatch.setattr(pipeline, "compress", stop)
    net = tmp_path / "net.py"
    net.write_text(
        "import torch\nfrom torch import nn\n"
        "def build_model(): return nn.Conv2d(3, 4, 3)\n"
        "def example_input(): return torch.zeros(1, 3, 8, 8)\n"
        "def calibration_data(): return [torch.zeros(2, 3, 8, 8)]\n"
    )
    words = ["compress", str(net), "--budget", "madds=50%", "--out", str(tmp_path / "run")]
    assert CliRunner().invoke(main, [*words, "--int8"]).exit_code == 1
    assert seen["int8"] is True
    assert "--int8" in seen["command"]
    CliRunner().invoke(main, words)
    assert seen["int8"] is False
