from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.device.measure import Settings, create_session, random_inputs, run_session
from compressor.errors import ExportError, MeasureError, UsageError
from compressor.latency.fused import Fused, Given, fuse
from compressor.latency.operators import Operator, model_of, operators, same_work

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def model(nodes: Sequence[Any], shape: Sequence[Any], weights: dict[str, np.ndarray]) -> bytes:
    """A model from `x` to `y`."""
    x = helper.make_tensor_value_info("x", FLOAT, shape)
    constants = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    y = helper.make_empty_tensor_value_info("y")
    y.type.tensor_type.elem_type = FLOAT
    graph = helper.make_graph(nodes, "net", [x], [y], constants)
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=f"node_{output}", **attributes)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, 1, shape).astype(np.float32)


def block(width: int, batch: int | str = "batch") -> bytes:
    """Convolution, BatchNorm and ReLU; a depthwise convolution; pooling, flatten, linear."""
    norm = {f"n{i}": floats(width) for i in range(4)}
    weights = {
        "one": floats(width, 3, 3, 3), **norm, "depth": floats(width, 1, 3, 3),
        "head": floats(5, width), "bias": floats(5), "flat": np.array([0, -1]),
    }  # fmt: skip
    nodes = [
        node("Conv", "x one", "a", pads=[1] * 4),
        node("BatchNormalization", "a n0 n1 n2 n3", "b"),
        node("Relu", "b", "c"),
        node("Conv", "c depth", "d", pads=[1] * 4, group=width),
        node("GlobalAveragePool", "d", "e"),
        node("Reshape", "e flat", "f"),
        node("Gemm", "f head bias", "y", transB=1),
    ]
    return model(nodes, [batch, 3, 8, 8], weights)


def found(data: bytes, **options: Any) -> list[Operator]:
    return operators(fuse(data, Settings(), **options))


def test_the_runtime_says_what_it_fuses():
    kinds = [o.form.kind for o in found(block(16)) if o.form.kind != "layout"]
    # BatchNorm and ReLU are gone: they are part of the convolution
    assert kinds == ["conv", "depthwise", "other", "other", "matmul"]


def test_sizes_of_all_inputs_are_known_also_of_weights_that_were_packed():
    head = next(o for o in found(block(16), batch=2) if o.form.kind == "matmul")
    assert head.sizes == (2, 16, 5, 16, 5)


@pytest.mark.parametrize("width", [3, 16, 20])
def test_every_operator_runs_alone_on_its_own_sizes(width):
    for operator in found(block(width), batch=2):
        if not operator.form.node:
            continue
        session = create_session(model_of(operator.form, operator.sizes), Settings())
        inputs = random_inputs(session, np.random.default_rng(0))
        given = [size for i in inputs for size in i.shape]
        assert given == list(operator.sizes[: len(given)])
        assert all(np.isfinite(out).all() for out in run_session(session, inputs))


def test_copies_all_run_and_none_is_taken_for_the_same_as_another():
    for operator in found(block(16)):
        if not operator.form.node:
            continue
        once, thrice = (
            fuse(model_of(operator.form, operator.sizes, copies), Settings()) for copies in (1, 3)
        )
        assert len(operators(thrice)) == 3 * len(operators(once)), operator.key


def test_handling_shapes_is_no_work():
    idle = [o.key for o in found(block(16)) if not o.form.node]
    assert idle == ["node_f"]


def test_equal_work_has_an_equal_signature_whatever_the_weights():
    one, other = block(16), block(16, batch=1).replace(b"node_c", b"node_q")
    assert [o.signature for o in found(one)] == [o.signature for o in found(other)]
    assert same_work(found(one)) == same_work(found(other)[::-1])
    assert same_work(found(one)) != same_work(found(block(32)))
    assert same_work(found(one)) != same_work(found(one, batch=2))


def test_attributes_make_another_form():
    def conv(**attributes: Any) -> Operator:
        nodes = [node("Conv", "x w", "y", **attributes)]
        data = model(nodes, [1, 16, 8, 8], {"w": floats(16, 16, 3, 3)})
        return next(o for o in found(data) if o.form.kind == "conv")

    assert conv().signature == conv().signature
    assert conv().form != conv(strides=[2, 2]).form
    assert conv().sizes == conv(strides=[2, 2]).sizes


def test_reordering_operators_are_known_by_their_tensor():
    node_ = helper.make_node("ReorderOutput", ["token_9"], ["c"], name="ReorderOutput_token_9")
    other = helper.make_node("ReorderOutput", ["token_7"], ["c"], name="ReorderOutput_token_7")
    keys = [written([n], {n.name: (Given("float", (1, 4)),)})[0].key for n in (node_, other)]
    assert keys == ["ReorderOutput c"] * 2


def written(nodes: Sequence[onnx.NodeProto], given: dict[str, tuple[Given, ...]]) -> list[Operator]:
    graph = helper.make_graph(nodes, "net", [], [])
    return operators(Fused(helper.make_model(graph).SerializeToString(), given))


def test_operators_without_a_name_are_known_by_their_kind():
    nodes = [node("HardSwish", "x", "a"), node("Sigmoid", "a", "y")]
    ran = found(model(nodes, [1, 4], {}))
    assert [o.key for o in ran] == ["HardSigmoid", "Mul", "node_y"]


def test_operators_that_cannot_be_told_apart_or_timed_are_refused():
    twice = [helper.make_node("Relu", ["a"], ["b"], name="same")] * 2
    with pytest.raises(ExportError, match="2 with 1 names"):
        written(twice, {"same": (Given("float", (1,)),)})
    text = [helper.make_node("Relu", ["a"], ["b"], name="relu")]
    with pytest.raises(ExportError, match="'relu' was given string"):
        written(text, {"relu": (Given("string", (1,)),)})
    with pytest.raises(ExportError, match=r"its 1 inputs.*was given 0"):
        written(text, {"relu": ()})


def test_what_cannot_be_run_is_an_error():
    with pytest.raises(MeasureError, match="cannot load"):
        fuse(b"no model", Settings())
    with pytest.raises(UsageError, match="provider must be one of"):
        fuse(block(16), Settings(provider="NoProvider"))
