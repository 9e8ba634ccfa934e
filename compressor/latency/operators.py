"""The operators of a network as they run, each as a small ONNX model that can be timed alone.

Two operators of the same form and the same sizes take the same time, wherever they stand. Knows
no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from compressor.errors import ExportError
from compressor.latency.fused import Fused, Given

_FEW = 64  # elements of a list of integers that is read as numbers, not as weights
_LAYOUT = {"ReorderInput", "ReorderOutput"}
_TYPES = {
    "float": TensorProto.FLOAT, "double": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64, "int32": TensorProto.INT32, "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8, "bool": TensorProto.BOOL,
}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """Everything of an operator but the sizes of its tensors.

    Attributes:
        name: a text that only equal forms share.
        kind: what sort of work it is: `conv`, `depthwise`, `matmul`, `layout` or `other`.
        node: the operator with plain names, serialised; empty where it only handles shapes, which
            takes no time worth measuring.
        opsets: domains and versions that it needs.
        inputs: how each input is made: `given` at run time, a `weight`, or serialised values.
        types: element type of each input.
        ranks: number of dimensions of each input.
    """

    name: str
    kind: str
    node: bytes
    opsets: tuple[tuple[str, int], ...]
    inputs: tuple[str | bytes, ...]
    types: tuple[int, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    """One operator of a network.

    Attributes:
        key: what it is called, the same in every slice of a network.
        form: everything but sizes.
        sizes: sizes of all its inputs, one after the other.
    """

    key: str
    form: Form
    sizes: tuple[int, ...]

    @property
    def signature(self) -> str:
        """A text that operators share which take the same time."""
        return f"{self.form.name} {'x'.join(map(str, self.sizes))}"


def operators(fused: Fused) -> list[Operator]:
    """The operators of a network in the order in which they run.

    Raises:
        ExportError: the graph cannot be taken apart: operators without names, inside of loops or
            branches, or of types that are not known here.
    """
    model = onnx.load_model_from_string(fused.model)
    constants = {t.name: t for t in model.graph.initializer}
    opsets = {o.domain: o.version for o in model.opset_import}
    graph_inputs = {i.name for i in model.graph.input}
    given = _given_by_name(model.graph.node, fused.given)
    names = [_called(node) for node in model.graph.node]
    if len(set(names)) != len(names) or not set(names) <= set(given):
        raise ExportError(
            "operators are known by their names, but ONNX Runtime ran "
            f"{len(names)} with {len(set(names) & set(given))} names"
        )
    return [
        _operator(node, given[_called(node)], constants, graph_inputs, opsets)
        for node in model.graph.node
    ]


def same_work(found: Sequence[Operator]) -> str:
    """A text that networks share which run the same operators in whatever order."""
    told = "\n".join(sorted(o.signature for o in found))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def model_of(form: Form, sizes: Sequence[int], copies: int = 1) -> bytes:
    """An operator as an ONNX model; what it is given at run time are the model's inputs.

    Weights are random numbers above 0, so that none is slow for being tiny. Copies run one after
    the other, each with inputs and weights of its own.
    """
    rng = np.random.default_rng(0)
    graph = helper.make_graph([], "operator", [], [])
    for copy in range(copies):
        _add(graph, form, sizes, f"of{copy}", rng)
    opsets = [helper.make_opsetid(domain, version) for domain, version in form.opsets]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def _add(
    graph: GraphProto, form: Form, sizes: Sequence[int], suffix: str, rng: np.random.Generator
) -> None:
    """Adds one copy, whose names end in the suffix."""
    start = 0
    for place, (how, kind, rank) in enumerate(
        zip(form.inputs, form.types, form.ranks, strict=True)
    ):
        shape, name, start = sizes[start : start + rank], f"i{place}{suffix}", start + rank
        if how == "given":
            graph.input.append(helper.make_tensor_value_info(name, kind, shape))
            continue
        if isinstance(how, bytes):
            constant = TensorProto.FromString(how)
        else:
            constant = numpy_helper.from_array(_weights(kind, shape, rng))
        constant.name = name
        graph.initializer.append(constant)
    node = NodeProto.FromString(form.node)
    node.name += suffix
    node.input[:] = [name and name + suffix for name in node.input]
    node.output[:] = [name and name + suffix for name in node.output]
    graph.node.append(node)
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in node.output if name)


def _weights(kind: int, shape: Sequence[int], rng: np.random.Generator) -> NDArray[Any]:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    if np.issubdtype(dtype, np.floating):
        return rng.uniform(0.01, 1.0, shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def _operator(
    node: NodeProto,
    given: Sequence[Given],
    constants: Mapping[str, TensorProto],
    graph_inputs: set[str],
    opsets: Mapping[str, int],
) -> Operator:
    present = [name for name in node.input if name]
    given = _completed(present, given, constants)
    if len(present) != len(given) or any(a.g.node or a.graphs for a in node.attribute):
        raise ExportError(
            f"an operator is timed alone with its {len(present)} inputs, but {node.op_type} "
            f"{node.name!r} was given {len(given)} or holds a graph of its own"
        )
    unknown = {g.type for g in given} - _TYPES.keys()
    if unknown:
        raise ExportError(
            f"an operator is timed alone with inputs of types that are known, but {node.op_type} "
            f"{node.name!r} was given {', '.join(sorted(unknown))}"
        )
    inputs = tuple(_input(constants.get(n), f"i{i}") for i, n in enumerate(present))
    form = _form(
        node, inputs, given, opsets, idle=_handles_shapes(node, given, constants, graph_inputs)
    )
    return Operator(_key(node), form, tuple(s for g in given for s in g.sizes))


def _completed(
    names: Sequence[str], given: Sequence[Given], constants: Mapping[str, TensorProto]
) -> list[Given]:
    """With the weights that the profiler leaves out because they were packed when loading."""
    left, missing, found = list(given), len(names) - len(given), []
    for name in names:
        constant = constants.get(name)
        same = bool(left) and constant is not None and left[0].sizes == tuple(constant.dims)
        if constant is not None and not same and missing > 0:
            missing -= 1
            kind = next((t for t, n in _TYPES.items() if n == constant.data_type), "unknown")
            found.append(Given(kind, tuple(constant.dims)))
        elif left:
            found.append(left.pop(0))
    return found + left


def _called(node: NodeProto) -> str:
    """Operators that the runtime takes apart leave some without a name."""
    return node.name or node.op_type


def _given_by_name(
    nodes: Sequence[NodeProto], given: Mapping[str, tuple[Given, ...]]
) -> dict[str, tuple[Given, ...]]:
    """What each was given; the profiler calls one without a name by its kind and a number."""
    found = dict(given)
    named = {node.name for node in nodes}
    for kind in {node.op_type for node in nodes if not node.name}:
        own = [n for n in given if n not in named and re.fullmatch(rf"{kind}_\d+", n)]
        if len(own) == 1:
            found[kind] = given[own[0]]
    return found


def _key(node: NodeProto) -> str:
    """Numbers in the names of reordering operators differ from slice to slice."""
    if node.op_type not in _LAYOUT:
        return _called(node)
    return f"{node.op_type} {(node.input if node.op_type == 'ReorderInput' else node.output)[0]}"


def _handles_shapes(
    node: NodeProto,
    given: Sequence[Given],
    constants: Mapping[str, TensorProto],
    graph_inputs: set[str],
) -> bool:
    """Whether it works out or uses sizes at run time; random numbers cannot stand for them."""
    present = [name for name in node.input if name]
    computed = [
        g for name, g in zip(present, given, strict=True)
        if name not in constants and name not in graph_inputs
    ]  # fmt: skip
    return node.op_type in ("Shape", "Reshape") or any(
        g.type == "int64" and len(g.sizes) <= 1 for g in computed
    )


def _input(constant: TensorProto | None, name: str) -> str | bytes:
    if constant is None:
        return "given"
    values = numpy_helper.to_array(constant)
    listed = values.ndim == 1 and values.size <= _FEW and values.dtype.kind == "i"
    if values.ndim == 0 or listed:
        return bytes(numpy_helper.from_array(values, name).SerializeToString())
    return "weight"


def _form(
    node: NodeProto,
    inputs: tuple[str | bytes, ...],
    given: Sequence[Given],
    opsets: Mapping[str, int],
    *,
    idle: bool,
) -> Form:
    places = iter(range(len(inputs)))
    plain = NodeProto()
    plain.CopyFrom(node)
    plain.name, plain.doc_string = "operator", ""
    plain.input[:] = [f"i{next(places)}" if name else "" for name in node.input]
    plain.output[:] = [f"o{i}" if name else "" for i, name in enumerate(node.output)]
    attributes = sorted(plain.attribute, key=lambda a: a.name)
    del plain.attribute[:]
    plain.attribute.extend(attributes)
    written = b"" if idle else bytes(plain.SerializeToString(deterministic=True))
    needed = {domain: opsets[domain] for domain in ("", node.domain) if domain in opsets}
    types, ranks = tuple(_TYPES[g.type] for g in given), tuple(len(g.sizes) for g in given)
    parts = (written, tuple(sorted(needed.items())), inputs, types, ranks)
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    name = f"{_title(node)} {digest}"
    return Form(name, _kind(node), written, parts[1], inputs, types, ranks)


def _title(node: NodeProto) -> str:
    domain = node.domain.rsplit(".", 1)[-1]
    return f"{domain}:{node.op_type}" if domain else node.op_type


def _kind(node: NodeProto) -> str:
    if node.op_type in _LAYOUT:
        return "layout"
    if "Conv" in node.op_type:
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        return "depthwise" if group > 1 else "conv"
    if "MatMul" in node.op_type or "Gemm" in node.op_type:
        return "matmul"
    return "other"
