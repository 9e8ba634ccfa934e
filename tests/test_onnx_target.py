"""`FILE.onnx`: what is read from an ONNX file is what ONNX Runtime computes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor, nn

from cli.resolve import resolve_target
from compressor.deploy.export import export_onnx
from compressor.errors import CheckError, TargetError
from compressor.foreign import onnx_file
from compressor.foreign.reading import read_file
from compressor.run.pipeline import compress
from compressor.run.reading import describe, read_network
from tests.test_exported_target import NETWORKS, trained
from tests.vision import torchvision

NETWORKS = {
    **NETWORKS,
    "mobilenet v3": (
        lambda: torchvision().models.mobilenet_v3_small(width_mult=0.5, num_classes=5), (3, 32, 32)
    ),
    "shufflenet": (
        lambda: torchvision().models.shufflenet_v2_x0_5(num_classes=5), (3, 32, 32)
    ),
}  # fmt: skip


def prepared(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, tuple[int, ...]]:
    monkeypatch.setattr("tests.test_exported_target.NETWORKS", NETWORKS)
    return trained(name)


@pytest.mark.parametrize(
    ("name", "dynamic"),
    [
        ("mixed", True), ("mixed", False), ("attention", True), ("attention", False),
        ("resnet", True), ("shufflenet", True),
        *(pytest.param(n, True, marks=pytest.mark.sweep) for n in ("mobilenet", "mobilenet v3")),
    ],
)  # fmt: skip
def test_files_of_our_own_are_read_and_cut_like_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dynamic: bool
) -> None:
    model, shape = prepared(name, monkeypatch)
    example = torch.randn(1, *shape)
    path = tmp_path / "net.onnx"
    export_onnx(model, (example,), path, dynamic_batch=dynamic)
    found = read_file(path)
    assert found.batch is None
    assert found.example[0].shape == example.shape
    three = torch.randn(3, *shape)
    with torch.no_grad():
        assert torch.allclose(found.model(three), model(three), atol=1e-4, rtol=1e-3)
    a, b = (describe(read_network(m, (example,)), (None, "")) for m in (model, found.model))
    assert a.madds == b.madds
    assert b.share == pytest.approx(a.share, abs=0.01)
    assert b.least_madds == pytest.approx(a.least_madds, rel=0.01)
    assert {x.name for x in a.sliced} == {x.name for x in b.sliced}


def test_a_file_is_compressed_and_exported(tmp_path: Path) -> None:
    model, shape = trained("mixed")
    path = tmp_path / "net.onnx"
    export_onnx(model, (torch.randn(1, *shape),), path)
    save_file({"inputs": torch.randn(16, *shape)}, tmp_path / "x.safetensors")
    target = resolve_target(str(path), f"tensors:{tmp_path / 'x.safetensors'}")
    result = compress(
        target.build_model(),
        target.example_input,
        budget="madds=60%",
        calibration=target.calibration,
        validation=target.validation,
        out=tmp_path / "run",
        evaluations=3,
    )
    assert result.onnx_path is not None
    assert result.onnx_path.is_file()
    assert result.summary.best.madds < 0.6 * result.summary.base.madds
    again = read_file(result.onnx_path)
    assert [tuple(t.shape) for t in again.example] == [(1, *shape)]


# single operators, against ONNX Runtime: `read_file` compares


def graph(
    nodes: Sequence[Any], inputs: Sequence[Sequence[int | str]], constants: dict[str, Any],
    path: Path, *, opset: int = 17, kind: int = TensorProto.FLOAT,
) -> Path:  # fmt: skip
    """A file with inputs `x0`, `x1`, …, and the output `y`."""
    given = [helper.make_tensor_value_info(f"x{i}", kind, s) for i, s in enumerate(inputs)]
    held = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = helper.make_model(
        helper.make_graph(nodes, "g", given, [out], held),
        opset_imports=[helper.make_opsetid("", opset)], ir_version=8,
    )  # fmt: skip
    made = onnx.shape_inference.infer_shapes(made)
    if not made.graph.output[0].type.tensor_type.HasField("shape"):
        made.graph.output[0].type.CopyFrom(made.graph.input[0].type)
    onnx.save(made, path)
    return path


def floats(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def whole(*numbers: int) -> Any:
    return np.array(numbers, dtype=np.int64)


N = helper.make_node
IMAGE = ["n", 4, 9, 9]
SINGLE: dict[str, tuple[list[Any], list[list[Any]], dict[str, Any], int]] = {
    "conv same": ([N("Conv", ["x0", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])], [IMAGE],
                  {"w": floats(6, 4, 4, 4)}, 17),
    "conv valid": ([N("Conv", ["x0", "w", "b"], ["y"], auto_pad="VALID", dilations=[2, 2])],
                   [IMAGE],
                   {"w": floats(6, 4, 3, 3), "b": floats(6)}, 17),
    "conv uneven": ([N("Conv", ["x0", "w"], ["y"], pads=[0, 1, 2, 1], group=2)], [IMAGE],
                    {"w": floats(6, 2, 3, 3)}, 17),
    "conv 1d": ([N("Conv", ["x0", "w"], ["y"], pads=[1, 1])], [["n", 4, 9]],
                {"w": floats(6, 4, 3)}, 17),
    "transposed": ([N("ConvTranspose", ["x0", "w", "b"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1],
                      output_padding=[1, 1])], [IMAGE],
                   {"w": floats(4, 3, 3, 3), "b": floats(3)}, 17),
    "batch norm": ([N("BatchNormalization", ["x0", "s", "b", "m", "v"], ["y"], epsilon=1e-3)],
                   [IMAGE], {"s": floats(4), "b": floats(4), "m": floats(4),
                             "v": floats(4) ** 2 + 1}, 15),
    "instance norm": ([N("InstanceNormalization", ["x0", "s", "b"], ["y"])], [IMAGE],
                      {"s": floats(4), "b": floats(4)}, 17),
    "layer norm": ([N("LayerNormalization", ["x0", "s", "b"], ["y"], axis=-2)], [["n", 4, 6]],
                   {"s": floats(4, 6), "b": floats(4, 6)}, 17),
    "group norm": ([N("GroupNormalization", ["x0", "s", "b"], ["y"], num_groups=2)], [IMAGE],
                   {"s": floats(4), "b": floats(4)}, 21),
    "prelu": ([N("PRelu", ["x0", "s"], ["y"])], [IMAGE], {"s": floats(4, 1, 1)}, 17),
    "gemm": ([N("Gemm", ["x0", "w", "b"], ["y"])], [["n", 6]],
             {"w": floats(6, 5), "b": floats(1, 5)}, 17),
    "gemm scaled": ([N("Gemm", ["x0", "w", "b"], ["y"], alpha=0.5, beta=2.0, transB=1)], [["n", 6]],
                    {"w": floats(5, 6), "b": floats(5)}, 17),
    "matmul and sum": ([N("MatMul", ["x0", "w"], ["a"]), N("Add", ["b", "a"], ["y"])],
                       [["n", 3, 6]], {"w": floats(6, 5), "b": floats(5)}, 17),
    "matmul alone": ([N("MatMul", ["x0", "w"], ["a"]), N("Add", ["a", "b"], ["y"])],
                     [["n", 3, 6]], {"w": floats(6, 5), "b": floats(3, 5)}, 17),
    "matmul left": ([N("MatMul", ["w", "x0"], ["y"])], [["n", 6, 3]], {"w": floats(5, 6)}, 17),
    "max pool": ([N("MaxPool", ["x0"], ["y"], kernel_shape=[3, 3], strides=[2, 2],
                    pads=[1, 1, 1, 1], ceil_mode=1)], [IMAGE], {}, 17),
    "max pool uneven": ([N("MaxPool", ["x0"], ["y"], kernel_shape=[2, 2], pads=[0, 0, 1, 1])],
                        [IMAGE], {}, 17),
    "average pool": ([N("AveragePool", ["x0"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1],
                        strides=[2, 2])], [IMAGE], {}, 17),
    "average pool counted": ([N("AveragePool", ["x0"], ["y"], kernel_shape=[3, 3],
                                pads=[1, 1, 1, 1], count_include_pad=1)], [IMAGE], {}, 17),
    "global pools": ([N("GlobalAveragePool", ["x0"], ["a"]), N("GlobalMaxPool", ["x0"], ["b"]),
                      N("Concat", ["a", "b"], ["y"], axis=1)], [IMAGE], {}, 17),
    "clip old": ([N("Clip", ["x0"], ["y"], min=-0.5, max=0.5)], [IMAGE], {}, 6),
    "clip above": ([N("Clip", ["x0", "", "m"], ["y"])], [IMAGE], {"m": np.float32(0.3)}, 17),
    "hard sigmoid": ([N("HardSigmoid", ["x0"], ["y"], alpha=0.3)], [IMAGE], {}, 17),
    "activations": ([N("Elu", ["x0"], ["a"], alpha=0.7), N("LeakyRelu", ["a"], ["b"], alpha=0.2),
                     N("Softplus", ["b"], ["c"]), N("HardSwish", ["c"], ["d"]),
                     N("Erf", ["d"], ["e"]), N("Neg", ["e"], ["y"])], [IMAGE], {}, 17),
    "gelu": ([N("Gelu", ["x0"], ["y"], approximate="tanh")], [IMAGE], {}, 20),
    "arithmetic": ([N("Sub", ["one", "x0"], ["a"]), N("Div", ["a", "two"], ["b"]),
                    N("Pow", ["b", "two"], ["c"]), N("Max", ["c", "x0", "one"], ["d"]),
                    N("Min", ["d", "two"], ["y"])], [IMAGE],
                   {"one": np.float32(1), "two": np.float32([2])}, 17),
    "where": ([N("Greater", ["x0", "zero"], ["a"]), N("Where", ["a", "x0", "zero"], ["y"])],
              [IMAGE], {"zero": np.float32(0)}, 17),
    "means": ([N("ReduceMean", ["x0"], ["a"], axes=[2, 3], keepdims=0),
               N("ReduceSum", ["x0", "d"], ["b"], keepdims=0), N("Add", ["a", "b"], ["y"])],
              [IMAGE], {"d": whole(-1, 2)}, 17),
    "norms": ([N("ReduceL2", ["x0"], ["a"], axes=[1]), N("Div", ["x0", "a"], ["y"])],
              [IMAGE], {}, 17),
    "softmax": ([N("Softmax", ["x0"], ["a"], axis=1), N("LogSoftmax", ["a"], ["y"])],
                [IMAGE], {}, 17),
    "resize": ([N("Resize", ["x0", "", "s"], ["y"], mode="linear")], [IMAGE],
               {"s": np.float32([1, 1, 2, 2])}, 17),
    "resize nearest": ([N("Resize", ["x0", "", "s"], ["y"], mode="nearest", nearest_mode="floor",
                          coordinate_transformation_mode="asymmetric")], [IMAGE],
                       {"s": np.float32([1, 1, 2, 3])}, 17),
    "resize corners": ([N("Resize", ["x0", "", "", "s"], ["y"], mode="linear",
                          coordinate_transformation_mode="align_corners")], [["n", 4, 9, 9]],
                       {"s": whole(2, 4, 17, 5)}, 17),
    "pad": ([N("Pad", ["x0", "p", "v"], ["y"])], [IMAGE],
            {"p": whole(0, 1, 0, 2, 0, 0, 3, 0), "v": np.float32(0.5)}, 17),
    "pad reflect": ([N("Pad", ["x0", "p"], ["y"], mode="reflect")], [IMAGE],
                    {"p": whole(0, 0, 1, 2, 0, 0, 3, 0)}, 17),
    "slices": ([N("Slice", ["x0", "s", "e", "a", "t"], ["y"])], [IMAGE],
               {"s": whole(1, -4), "e": whole(3, 2**62), "a": whole(1, 2), "t": whole(1, 2)}, 17),
    "split": ([N("Split", ["x0", "s"], ["a", "b"], axis=1), N("Concat", ["b", "a"], ["y"], axis=1)],
              [IMAGE], {"s": whole(1, 3)}, 17),
    "split equally": ([N("Split", ["x0"], ["a", "b"], axis=1), N("Mul", ["b", "a"], ["y"])],
                      [IMAGE], {}, 17),
    "gather": ([N("Gather", ["x0", "i"], ["a"], axis=1), N("Gather", ["a", "j"], ["y"], axis=3)],
               [IMAGE], {"i": whole(2, -1, 0), "j": np.int64(3)}, 17),
    "gather block": ([N("Gather", ["x0", "i"], ["y"], axis=2)], [IMAGE],
                     {"i": np.array([[0, 1], [2, 3]])}, 17),
    "shapes": ([N("Unsqueeze", ["x0", "u"], ["a"]),
                N("Transpose", ["a"], ["b"], perm=[0, 3, 1, 4, 2]),
                N("Squeeze", ["b", "v"], ["c"]), N("Flatten", ["c"], ["y"])], [IMAGE],
               {"u": whole(1), "v": whole(2)}, 17),
    "a shape that is computed": (
        [N("Shape", ["x0"], ["s"]), N("Gather", ["s", "i"], ["n"], axis=0),
         N("Concat", ["n", "r"], ["t"], axis=0), N("Reshape", ["x0", "t"], ["y"])],
        [IMAGE], {"i": whole(0), "r": whole(-1, 27)}, 17),
    "a token for each": (
        [N("Shape", ["x0"], ["s"], start=0, end=1), N("Concat", ["s", "r"], ["t"], axis=0),
         N("Expand", ["w", "t"], ["e"]), N("Concat", ["e", "x0"], ["y"], axis=1)],
        [["n", 4, 6]], {"w": floats(1, 1, 6), "r": whole(1, 6)}, 17),
    "zeros for each": (
        [N("Shape", ["x0"], ["s"]), N("ConstantOfShape", ["s"], ["z"]),
         N("Concat", ["z", "x0"], ["y"], axis=1)], [["n", 4, 6]], {}, 17),
    "depth to space": ([N("DepthToSpace", ["x0"], ["a"], blocksize=2),
                        N("DepthToSpace", ["x0"], ["b"], blocksize=2, mode="CRD"),
                        N("Add", ["a", "b"], ["y"])], [IMAGE], {}, 17),
    "space to depth": ([N("SpaceToDepth", ["x0"], ["y"], blocksize=3)], [IMAGE], {}, 17),
    "two inputs": ([N("MatMul", ["x0", "x1"], ["y"])], [["n", 3, 4], ["n", 4, 5]], {}, 17),
    "einsum": ([N("Einsum", ["x0", "x1"], ["y"], equation="nij,njk->nik")],
               [["n", 3, 4], ["n", 4, 5]], {}, 17),
    "constants": ([N("Constant", [], ["c"], value_floats=[1.0, 2.0, 3.0, 4.0, 5.0]),
                   N("Cast", ["i"], ["f"], to=TensorProto.FLOAT), N("Mul", ["c", "f"], ["g"]),
                   N("Identity", ["x0"], ["a"]), N("Add", ["a", "g"], ["y"])], [["n", 5]],
                  {"i": whole(1, 2, 3, 4, 5)}, 17),
}  # fmt: skip


@pytest.mark.parametrize("name", SINGLE)
def test_operators_compute_what_onnx_runtime_computes(tmp_path: Path, name: str) -> None:
    nodes, inputs, constants, opset = SINGLE[name]
    found = read_file(graph(nodes, inputs, constants, tmp_path / "a.onnx", opset=opset))
    assert found.batch is None or name == "resize corners"


def test_an_embedding_takes_whole_numbers(tmp_path: Path) -> None:
    nodes = [N("Gather", ["w", "x0"], ["a"]), N("ReduceMean", ["a"], ["y"], axes=[1], keepdims=0)]
    path = graph(nodes, [["n", 7]], {"w": floats(11, 4)}, tmp_path / "a.onnx",
                 kind=TensorProto.INT64)  # fmt: skip
    found = read_file(path)
    assert found.example[0].dtype == torch.int64
    assert found.batch is None


def test_names_are_those_of_the_file(tmp_path: Path) -> None:
    nodes = [
        N("Conv", ["x0", "stem.conv.weight"], ["a"], name="/whatever/Conv"),
        N("Conv", ["a", "onnx::Conv_12"], ["b"], name="/layer1/layer1.0/conv1/Conv"),
        N("Conv", ["b", "w-1"], ["c"], name="forward"),
        N("Add", ["c", "scale.training"], ["y"]),
    ]
    held = {name: floats(4, 4, 1, 1) for name in ("stem.conv.weight", "onnx::Conv_12", "w-1")} | {
        "scale.training": floats(4, 1, 1)
    }
    model = read_file(graph(nodes, [IMAGE], held, tmp_path / "a.onnx")).model
    assert set(dict(model.named_parameters())) == {
        "stem.conv.weight", "layer1.layer1.0.conv1.weight", "forward_.weight", "scale.training_",
    }  # fmt: skip


def test_equal_constants_that_are_stored_once_are_cut_apart(tmp_path: Path) -> None:
    """Exporters keep one copy of equal tensors, whatever they belong to."""
    nodes = [
        N("Conv", ["x0", "w", "b"], ["a"]), N("Conv", ["a", "v", "b"], ["c"]),
        N("Conv", ["c", "w", "b"], ["y"]),
    ]  # fmt: skip
    held = {"w": floats(4, 4, 1, 1), "v": 2 * floats(4, 4, 1, 1), "b": floats(4)}
    model = read_file(graph(nodes, [IMAGE], held, tmp_path / "a.onnx")).model
    assert len([m for m in model.modules() if isinstance(m, nn.Conv2d)]) == 2
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    assert len({p.data_ptr() for p in biases}) == 2


def test_weights_in_a_file_beside_are_found(tmp_path: Path) -> None:
    path = graph([N("MatMul", ["x0", "w"], ["y"])], [["n", 64]], {"w": floats(64, 64)},
                 tmp_path / "a.onnx")  # fmt: skip
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="a.data", size_threshold=0)
    assert read_file(path).batch is None
    (tmp_path / "a.data").unlink()
    with pytest.raises(TargetError, match="must be a valid ONNX file"):
        read_file(path)


def test_weights_are_not_read_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(4 * 64 * 64))
    (tmp_path / "in").mkdir()
    path = graph([N("MatMul", ["x0", "w"], ["y"])], [["n", 64]], {"w": floats(64, 64)},
                 tmp_path / "in" / "a.onnx")  # fmt: skip
    model = onnx.load(path)
    for where in ("../secret", str(tmp_path / "secret")):
        one = model.graph.initializer[0]
        one.ClearField("raw_data")
        one.data_location = TensorProto.EXTERNAL
        del one.external_data[:]
        one.external_data.add(key="location", value=where)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(TargetError, match="must be a valid ONNX file"):
            read_file(path)


def test_operators_that_are_not_known_are_all_named(tmp_path: Path) -> None:
    nodes = [
        N("Det", ["x0"], ["a"], name="first"), N("Det", ["x0"], ["b"], name="second"),
        N("NonZero", ["a"], ["c"], name="third"), N("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
    ]  # fmt: skip
    path = graph(nodes, [["n", 3, 3]], {}, tmp_path / "a.onnx")
    with pytest.raises(TargetError, match=r"Det \(first, second\); NonZero \(third\); give the"):
        read_file(path)


@pytest.mark.parametrize(
    ("nodes", "inputs", "said"),
    [
        ([N("Conv", ["x0", "x1"], ["y"])], [[1, 1, 4, 4], [1, 1, 2, 2]], "'x1' is computed from"),
        ([N("Softmax", ["x0"], ["y"])], [[1, "height"]], "every size of an input but the batch"),
        ([N("Relu", ["x0"], ["y"])], [[2, 3, 1 << 62, 8]], "at most 268435456 elements, but 'x0'"),
        ([N("Relu", ["x0"], ["y"])], [[2, 3, 60000, 60000]], "at most 268435456 elements"),
        ([N("Relu", ["x0"], ["y"])], [[2, -3]], "sizes of an input must be above 0"),
        ([N("Reshape", ["x0", "i"], ["y"])], [[2, 4]], "cannot be run: "),
        ([N("MaxPool", ["x0"], ["y", "z"], kernel_shape=[2, 2])], [[1, 1, 4, 4]], "places of the"),
    ],
)
def test_what_cannot_be_read_is_explained(
    tmp_path: Path, nodes: list[Any], inputs: list[list[Any]], said: str
) -> None:
    path = graph(nodes, inputs, {"i": whole(3, 3)}, tmp_path / "a.onnx")
    with pytest.raises(TargetError, match=said):
        read_file(path)


def test_a_difference_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {**onnx_file._HANDLERS, "Tanh": onnx_file._HANDLERS["Sigmoid"]}
    monkeypatch.setattr(onnx_file, "_HANDLERS", wrong)
    path = graph([N("Tanh", ["x0"], ["y"])], [IMAGE], {}, tmp_path / "a.onnx")
    with pytest.raises(CheckError, match="must give ONNX Runtime's outputs within"):
        read_file(path)


def test_files_that_are_damaged(tmp_path: Path) -> None:
    good = graph([N("Relu", ["x0"], ["y"])], [IMAGE], {}, tmp_path / "good.onnx").read_bytes()
    model = onnx.load_from_string(good)
    model.graph.node[0].input[0] = "gone"
    for data in (b"", b"hello", good[: len(good) // 2], model.SerializeToString()):
        (tmp_path / "bad.onnx").write_bytes(data)
        with pytest.raises(TargetError, match="must be a valid ONNX file"):
            read_file(tmp_path / "bad.onnx")


def test_the_target_says_how_images_are_prepared(
    tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    folder = make_images(tmp_path)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    export_onnx(model, (torch.randn(1, 3, 20, 24),), tmp_path / "net.onnx")
    target = resolve_target(str(tmp_path / "net.onnx"), f"imagefolder:{folder}")
    assert "resized to 20 × 24" in target.note
    images: Tensor = target.calibration[0][0]  # type: ignore[index]  # a list
    assert images.shape[1:] == (3, 20, 24)


@pytest.fixture
def make_images() -> Callable[..., Path]:
    from PIL import Image  # noqa: PLC0415

    def make(path: Path) -> Path:
        for name in ("cat", "dog"):
            (path / "images" / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (50, 40), (i * 50, 0, 0)).save(path / "images" / name / f"{i}.png")
        return path / "images"

    return make
