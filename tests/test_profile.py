"""Where the time goes: the profiler's events, the parts they belong to, tables and pictures."""

from __future__ import annotations

import json
import math
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from cli.main import main
from compressor.device.job import Job
from compressor.device.measure import Measured, Settings
from compressor.device.origins import origins
from compressor.device.profile import REST, NodeTime, Origin, Profile, grouped, read_events
from compressor.device.profiling import profile_models
from compressor.errors import MeasureError, RunError, UsageError
from compressor.report.charts import SERIES, bars, standalone
from compressor.report.profile_chart import profile_chart, write_profile_picture
from tests.test_cli import LATENCY


def network(width: int = 8) -> bytes:
    """Convolution, ReLU, depthwise convolution and a sum, with the exporter's names."""
    rng = np.random.default_rng(0)
    weights = {
        "stem.conv.weight": rng.standard_normal((width, 3, 3, 3)),
        "body.0.weight": rng.standard_normal((width, 1, 3, 3)),
        "val_3": np.ones(1),
    }
    nodes = [
        helper.make_node("Conv", ["x", "stem.conv.weight"], ["a"], name="c1", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["relu"], name="r1"),
        helper.make_node(
            "Conv", ["relu", "body.0.weight"], ["b"], name="c2", pads=[1] * 4, group=width
        ),
        helper.make_node("Add", ["b", "relu"], ["c"], name="sum"),
        helper.make_node("Sin", ["c"], ["d"], name="wave"),
        helper.make_node("Mul", ["d", "val_3"], ["y"], name="scale"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width, 16, 16])],
        [onnx.numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def event(name: str, start: int, duration: int, kind: str = "Conv") -> dict[str, Any]:
    cat = "Session" if name == "model_run" else "Node"
    suffix = "" if cat == "Session" else "_kernel_time"
    return {
        "cat": cat, "name": name + suffix, "ts": start, "dur": duration, "args": {"op_name": kind},
    }  # fmt: skip


def runs(*durations: int) -> list[dict[str, Any]]:
    """One run for each duration of an operator "a"."""
    events = []
    for number, duration in enumerate(durations):
        start = 10_000 * number
        events += [event("a", start + 10, duration), event("model_run", start, 5000)]
    return events


def profiles() -> dict[str, Profile]:
    one = [NodeTime("n1", "Conv", "stem", 1, 3.0), NodeTime("n2", "Conv", "body", 1, 1.0)]
    two = [NodeTime("n1", "Conv", "stem", 1, 1.0), NodeTime("r", "Reorder", "", 2, 0.5)]
    return {"original": Profile(tuple(one), 9), "compressed": Profile(tuple(two), 9)}


def test_only_the_last_runs_count_and_interrupted_ones_do_not() -> None:
    found = read_events(runs(4000, 4000, 100, 100, 102, 102, 3000, 1), runs=6)
    (node,) = found.nodes
    assert (found.runs, node.calls) == (6, 1)
    assert node.ms == pytest.approx(0.101)  # 1 and 3000 are not in the middle half
    assert found.ms == node.ms
    assert found.share(node) == 1


def test_times_of_repeated_calls_are_added() -> None:
    events = [event("a", 1, 5), event("a", 10, 7), event("model_run", 0, 100)]
    (node,) = read_events(events, runs=1).nodes
    assert (node.calls, node.ms) == (2, pytest.approx(0.012))


def test_what_runs_inside_a_loop_counts_as_the_loop() -> None:
    events = [
        event("loop", 10, 50, "Loop"), event("inner", 12, 20), event("last", 60, 3),
        event("model_run", 0, 100),
    ]  # fmt: skip
    found = read_events(events, runs=1)
    assert [node.name for node in found.nodes] == ["loop", "last"]
    assert found.ms == pytest.approx(0.053)


@pytest.mark.parametrize(
    "name", ["relu", "relu_nchwc", "relu_token_12", "relu_QuantizeLinear", "relu_nchwc_token_3"]
)
def test_names_that_the_runtime_made_up_are_traced_back(name: str) -> None:
    events = [event(name, 1, 2), event("model_run", 0, 9)]
    (node,) = read_events(events, 1, {"relu": Origin("stem", "3x3")}).nodes
    assert (node.module, node.kind, node.place) == ("stem", "Conv 3x3", "stem")


def test_an_operator_of_no_known_module_keeps_its_name() -> None:
    events = [event("ReorderOutput_token_5", 1, 2, "ReorderOutput"), event("model_run", 0, 9)]
    (node,) = read_events(events, 1, {"relu": Origin("stem", "3x3")}).nodes
    assert (node.module, node.place, node.kind) == (
        "", "ReorderOutput_token_5", "ReorderOutput",
    )  # fmt: skip


def test_too_few_runs_and_another_form_are_errors() -> None:
    with pytest.raises(MeasureError, match=r"profile of 3 runs.*noted 2"):
        read_events(runs(1, 2), runs=3)
    with pytest.raises(MeasureError, match="unknown form"):
        read_events([{"name": "model_run"}], runs=1)


def test_operators_belong_to_the_modules_of_their_weights() -> None:
    found = origins(network())
    assert found["c1"] == found["a"] == Origin("stem.conv", "3x3")
    assert found["relu"] == Origin("stem.conv", "3x3")
    assert found["c2"] == Origin("body.0", "3x3 depthwise")
    assert found["sum"].module == found["scale"].module == "body.0"


def test_constants_pass_their_module_on() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["head.weight"], ["t"], name="turn", perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["y"], name="product"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [onnx.numpy_helper.from_array(np.ones((2, 4), np.float32), "head.weight")],
    )
    found = origins(helper.make_model(graph).SerializeToString())
    assert found["product"] == Origin("head")
    assert "turn" not in found


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model at all")
    with pytest.raises(MeasureError, match=r"broken\.onnx"):
        origins(tmp_path / "broken.onnx")
    with pytest.raises(MeasureError, match="model in memory"):
        origins(b"no model at all")
    with pytest.raises(MeasureError, match=r"'mine'.*broken\.onnx"):
        profile_models({"mine": tmp_path / "broken.onnx"}, Settings())


def test_real_models_are_profiled_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = profile_models({"wide": network(32), "thin": network(16)}, Settings(), runs=6)
    assert list(found) == ["wide", "thin"]
    for profile in found.values():
        kinds = profile.by_kind()
        assert kinds["Conv 3x3"].calls == kinds["Conv 3x3 depthwise"].calls == kinds["Sin"].calls
        assert {"stem.conv", "body.0"} <= set(profile.by_place())
        assert profile.runs == 6
        assert all(node.ms >= 0 and math.isfinite(node.ms) for node in profile.nodes)
        assert sum(profile.share(n) for n in profile.nodes) == pytest.approx(1)
    assert list(tmp_path.iterdir()) == []


def test_a_profile_needs_models_runs_and_shapes() -> None:
    with pytest.raises(UsageError, match="0 models"):
        profile_models({}, Settings())
    with pytest.raises(UsageError, match="0 runs"):
        profile_models({"m": network()}, Settings(), runs=0)


def test_groups_stand_beside_each_other_the_slowest_first() -> None:
    rows = grouped(profiles(), lambda node: node.place, 9)
    assert [group for group, _ in rows] == ["stem", "body", "r"]
    assert [[n and n.ms for n in nodes] for _, nodes in rows] == [
        [3.0, 1.0], [1.0, None], [None, 0.5],
    ]  # fmt: skip


def test_many_groups_end_in_a_rest_that_loses_nothing() -> None:
    nodes = tuple(NodeTime(f"n{i}", "Conv", f"m{i}", 1, 1.0 + i) for i in range(50))
    profile = Profile(nodes, 3)
    rows = grouped({"a": profile, "b": Profile((), 3)}, lambda node: node.place, 10)
    assert len(rows) == 10
    assert rows[-1][0] == REST
    assert rows[-1][1][1] is None
    kept = [row[0] for _, row in rows]
    assert sum(n.ms for n in kept if n) == pytest.approx(profile.ms)
    assert sum(n.calls for n in kept if n) == 50


def test_a_picture_is_a_file_of_its_own(tmp_path: Path) -> None:
    path = write_profile_picture(profiles(), tmp_path / "profile.svg")
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)  # noqa: S314 - it was written here
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme:dark" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    words = [e.text for e in root.iter() if e.tag.endswith("text")]
    assert {"By operator", "By module", "stem", "3 ms", "original: 4 ms"} <= set(words)
    assert [p.name for p in tmp_path.iterdir()] == ["profile.svg"]


def test_labels_of_a_picture_stay_apart_and_inside() -> None:
    rows = [(f"a.module.with.a.very.long.name.number.{i}.conv", [i + 1.0, 2.0]) for i in range(30)]
    chart = bars([("One", rows), ("Two", rows)], ["a", "b"], lambda v: f"{v:g} ms")
    root = ElementTree.fromstring(standalone(chart))  # noqa: S314 - it was written here
    texts = [e for e in root.iter() if e.tag.endswith("text")]
    labels = [float(e.attrib["y"]) for e in texts if e.attrib["class"] == "tick end"]
    values = [float(e.attrib["y"]) for e in texts if e.attrib["class"] == "tick"]
    for ys in (labels, values):
        assert all(b - a >= 11 for a, b in pairwise(ys))
    assert max(len(e.text or "") for e in texts) <= 29
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    assert all(top < float(e.attrib["y"]) < top + height for e in texts)
    assert all(left < float(e.attrib["x"]) < left + width - 50 for e in texts)


def test_names_in_a_picture_are_text() -> None:
    hostile = '<script>alert(1)</script>"&'
    node = NodeTime(hostile, hostile, hostile, 1, 1.0)
    chart = profile_chart({hostile: Profile((node,), 1)})
    assert "<script" not in chart
    ElementTree.fromstring(standalone(chart))  # noqa: S314 - it was written here


def test_an_empty_profile_has_a_picture() -> None:
    ElementTree.fromstring(standalone(profile_chart({"a": Profile((), 1)})))  # noqa: S314


def test_too_many_profiles_and_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (one,) = list(profiles().values())[:1]
    many = {str(i): one for i in range(len(SERIES) + 1)}
    with pytest.raises(UsageError, match="at most 3 profiles, but got 4"):
        profile_chart(many)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        write_profile_picture(profiles(), tmp_path / "file" / "p.svg")


def _measured(job: Job, _: object) -> Measured:
    return Measured(dict.fromkeys(job.models, LATENCY), "local", "1.31.1", "a processor")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("cli.measure_command.measure_fully", _measured)
    for name, width in (("[red]a.onnx", 16), ("b.onnx", 8)):
        (tmp_path / name).write_bytes(network(width))
    return [str(tmp_path / "[red]a.onnx"), str(tmp_path / "b.onnx")]


def call(*words: object) -> Any:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_command_prints_where_the_time_goes(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    done = call("measure", *files, "--profile")
    assert done.exit_code == 0
    assert all(word in done.stdout for word in ("Conv 3x3", "stem.conv", "[red]a.onnx"))
    assert "stem.conv" not in call("measure", *files).stdout


def test_the_command_gives_the_profile_as_json(files: list[str]) -> None:
    rows = json.loads(call("measure", *files, "--profile", "--json").stdout)["models"]
    for row in rows:
        found = row["profile"]
        assert sum(o["share"] for o in found["operators"]) == pytest.approx(1)
        assert sum(n["ms"] for n in found["nodes"]) == pytest.approx(found["ms"])
        assert {"kind", "calls", "ms", "share"} == set(found["operators"][0])
    plain = json.loads(call("measure", *files, "--json").stdout)["models"]
    assert all("profile" not in row for row in plain)


def test_the_command_draws_a_picture(files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "p.svg"
    assert call("measure", *files, "--profile-picture", out).exit_code == 0
    assert "[red]a.onnx: " in out.read_text(encoding="utf-8")
    refused = call("measure", *files, *files, *files[:1], "--profile-picture", out)
    assert refused.exit_code == 0  # the same file twice is one model
    for name in "cd":
        (tmp_path / f"{name}.onnx").write_bytes(network())
    more = [tmp_path / "c.onnx", tmp_path / "d.onnx"]
    refused = call("measure", *files, *more, "--profile-picture", out)
    assert refused.exit_code == 2
    assert "at most 3 profiles" in refused.stderr


def test_a_profile_of_another_device_is_refused(files: list[str]) -> None:
    done = call("measure", *files, "--profile", "--device", "cmd:bench {model}")
    assert done.exit_code == 2
    assert "--profile needs the device local" in done.stderr
