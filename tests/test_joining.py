"""Several networks in one ONNX file: one input, every output, and nothing mixed up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compressor.deploy.export import export_joint, export_onnx
from compressor.deploy.joining import joined
from compressor.device.measure import Settings, create_session, run_session
from compressor.errors import CheckError, ExportError

EXAMPLE = (torch.zeros(1, 4),)


class Several(nn.Module):
    """Two outputs, one of them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> dict[str, Tensor | None]:
        logits = self.layer(images)
        return {"logits": logits, "nothing": None, "twice": logits * 2}


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"one": nn.Linear(4, 2).eval(), "several": Several().eval()}


def files(given: dict[str, nn.Module], folder: Path) -> dict[str, Path]:
    return {n: export_onnx(m, EXAMPLE, folder / f"{n}.onnx").path for n, m in given.items()}


def test_every_output_is_its_networks_own_and_named_after_it(tmp_path: Path) -> None:
    given = networks()
    report = export_joint(
        given, files(given, tmp_path), EXAMPLE, tmp_path / "joint.onnx", metadata={"a": "b"}
    )
    assert report.output_names[0] == "one"
    assert [name.partition("/")[0] for name in report.output_names] == ["one", *["several"] * 2]
    assert report.input_names == ("input",)
    assert report.max_difference < 1e-5
    assert report.batch_sizes == (1, 3)
    model = onnx.load(str(report.path))
    assert {t.name for t in model.graph.initializer} >= {"one/weight", "several/layer.weight"}
    assert [(p.key, p.value) for p in model.metadata_props] == [("a", "b")]
    x = torch.randn(7, 4)
    found = run_session(create_session(report.path, Settings()), [x.numpy()])
    several = given["several"](x)
    for got, wanted in zip(
        found, [given["one"](x), several["logits"], several["twice"]], strict=True
    ):
        assert np.allclose(got, wanted.detach().numpy(), atol=1e-6)


def test_a_file_of_another_network_is_found_out_and_not_left(tmp_path: Path) -> None:
    given = networks()
    wrong = {"one": nn.Linear(4, 2).eval(), "several": given["several"]}
    with pytest.raises(CheckError, match="must agree"):
        export_joint(wrong, files(given, tmp_path), EXAMPLE, tmp_path / "joint.onnx")
    assert not (tmp_path / "joint.onnx").exists()


def branching(sign: int, sizes: tuple[int, ...] = (2,), opset: int = 18) -> ModelProto:
    """A graph whose branches read a constant and a value from outside of them."""
    kind = TensorProto.FLOAT
    then, otherwise = (
        helper.make_graph(
            [helper.make_node(operator, ["doubled", "step"], [f"{operator}_out"], name="inner")],
            operator, [], [helper.make_tensor_value_info(f"{operator}_out", kind, None)],
        )
        for operator in ("Add", "Sub")
    )  # fmt: skip
    branches = {"then_branch": then, "else_branch": otherwise}
    nodes = [
        helper.make_node("Add", ["x", "x"], ["doubled"], name="double"),
        helper.make_node("ReduceSum", ["doubled"], ["total"], name="sum", keepdims=0),
        helper.make_node("Greater", ["total", "limit"], ["more"], name="compare"),
        helper.make_node("If", ["more"], ["y"], name="if", **branches),
    ]
    constants = [
        numpy_helper.from_array(np.full(sizes, sign, np.float32), "step"),
        numpy_helper.from_array(np.float32(0), "limit"),
    ]
    ports = [helper.make_tensor_value_info(name, kind, sizes) for name in "xy"]
    graph = helper.make_graph(nodes, "branching", ports[:1], ports[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_branches_read_their_own_networks_values() -> None:
    whole = joined({"up": branching(1), "down": branching(-1)})
    onnx.checker.check_model(whole, full_check=True)
    session = create_session(whole.SerializeToString(), Settings())
    for x, wanted in (
        ([1.0, 1.0], [[3.0, 3.0], [1.0, 1.0]]),
        ([-1.0, -1.0], [[-3.0] * 2, [-1.0] * 2]),
    ):
        assert np.allclose(run_session(session, [np.array(x, np.float32)]), wanted)


def test_a_network_called_as_the_input_keeps_its_output_apart() -> None:
    whole = joined({"x": branching(1), "y": branching(-1)})
    assert [o.name for o in whole.graph.output] == ["x/y", "y"]
    onnx.checker.check_model(whole, full_check=True)


def test_what_cannot_be_one_file_is_told() -> None:
    with pytest.raises(ExportError, match=r"'a' reads 1\[2\] and 'b' 1\[3\]"):
        joined({"a": branching(1), "b": branching(1, (3,))})
    with pytest.raises(ExportError, match="one version of each operator set"):
        joined({"a": branching(1), "b": branching(1, opset=17)})
