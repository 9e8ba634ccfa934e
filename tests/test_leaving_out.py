"""Blocks cut out of an exported graph: the same outputs as torch, or a clear refusal."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from adapters.generic import GenericAdapter
from compressor.deploy.export import export_base
from compressor.deploy.slicing import BaseGraph
from compressor.errors import ExportError
from compressor.network.structure import materialise
from compressor.space import Architecture, Block, Choice, SearchLayer, SearchSpace
from tests.networks import PaddedShortcuts
from tests.test_assembly import drawn
from tests.test_blocks import EXAMPLE, Inverted, Residuals, Transformer

CHOICES = (Choice(kept=False), Choice(kept=True))


class Last(Residuals):
    """A network that returns what its last block makes, and what it reads."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = self.blocks[0](self.stem(x))
        return self.blocks[1](x), x.mean((2, 3))


@cache
def read(kind: Any) -> tuple[nn.Module, SearchSpace, BaseGraph]:
    torch.manual_seed(0)
    model = kind().eval()
    space = GenericAdapter(blocks=True).read(model, EXAMPLE)
    return model, space, export_base(model, EXAMPLE)


def run(data: bytes, x: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(data)
    found: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return found


def dropping(space: SearchSpace, *names: str) -> Architecture:
    pairs = zip(space.layers, space.original, strict=True)
    return tuple(0 if layer.name in names else option for layer, option in pairs)


@pytest.mark.parametrize("kind", [PaddedShortcuts, Inverted, Transformer])
def test_a_slice_without_blocks_computes_what_torch_does(kind: Any) -> None:
    model, space, graph = read(kind)
    blocks = [layer.name for layer in space.layers if layer.block]
    some = [dropping(space, *blocks), dropping(space, blocks[0]), space.smallest]
    for architecture in [*some, *drawn(space.sizes, 4)]:
        data = graph.slice(space, architecture)
        small = materialise(model, space, architecture)
        with torch.no_grad():
            for x in (EXAMPLE[0], torch.randn(5, 3, 16, 16)):
                np.testing.assert_allclose(run(data, x)[0], small(x).numpy(), rtol=1e-3, atol=1e-5)
        weights = {t.name for t in onnx.load_from_string(data).graph.initializer}
        assert not any(b.holds(name) for b in space.dropped(architecture) for name in weights)


def test_a_block_whose_output_is_the_networks_leaves_that_output() -> None:
    model, space, graph = read(Last)
    architecture = dropping(space, "blocks.0", "blocks.1")
    got = run(graph.slice(space, architecture), EXAMPLE[0])
    with torch.no_grad():
        want = materialise(model, space, architecture)(*EXAMPLE)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-6)


def test_the_original_is_sliced_as_before() -> None:
    _, space, graph = read(PaddedShortcuts)
    plain = SearchSpace(tuple(layer for layer in space.layers if not layer.block))
    assert graph.slice(space, space.original) == graph.slice(plain, plain.original)


# ---- graphs in which it cannot be seen


def small_graph(**changes: Any) -> BaseGraph:
    """x -> stem -> (relu, b.mul, b.add) -> head, the middle of the module b."""
    nodes = [
        helper.make_node("Mul", ["x", "stem.weight"], ["a"]),
        helper.make_node("Mul", ["a", "b.weight"], ["m"]),
        helper.make_node("Add", ["a", "m"], ["y"]),
        helper.make_node("Mul", ["y", "head.weight"], ["z"]),
        *changes.get("nodes", ()),
    ]
    weights = [
        numpy_helper.from_array(np.full(4, value, np.float32), name)
        for name, value in (("stem.weight", 2), ("b.weight", 3), ("head.weight", 5))
    ]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xzamy"]
    outputs = [value[1], *changes.get("outputs", ())]
    graph = helper.make_graph(nodes, "g", value[:1], outputs, weights, value_info=value[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    scopes = {"m": "b", "y": "b"} | changes.get("scopes", {})
    return BaseGraph(model.SerializeToString(), scopes=scopes)


SPACE = SearchSpace((SearchLayer("b", ("b",), CHOICES, block=Block("b")),))
X = torch.ones(1, 4)


def test_a_block_is_found_between_what_it_reads_and_what_it_makes() -> None:
    assert run(small_graph().slice(SPACE, (1,)), X)[0].tolist() == [[40.0] * 4]
    assert run(small_graph().slice(SPACE, (0,)), X)[0].tolist() == [[10.0] * 4]


def test_a_block_of_which_two_tensors_are_read_is_refused() -> None:
    more = {
        "nodes": [helper.make_node("Neg", ["m"], ["w"])],
        "outputs": [helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, 4])],
    }
    with pytest.raises(ExportError, match="'b' makes 'm', 'y'; export the materialised network"):
        small_graph(**more).slice(SPACE, (0,))


def test_a_block_that_the_graph_does_not_tell_of_is_refused() -> None:
    with pytest.raises(ExportError, match="'b' makes none"):
        small_graph(scopes={"m": "", "y": ""}).slice(SPACE, (0,))


def test_a_weight_that_is_read_elsewhere_too_is_refused() -> None:
    more = {
        "nodes": [helper.make_node("Mul", ["x", "b.weight"], ["w"])],
        "outputs": [helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, 4])],
    }
    with pytest.raises(ExportError, match=r"nothing may be left, but 'b\.weight'"):
        small_graph(**more).slice(SPACE, (0,))
