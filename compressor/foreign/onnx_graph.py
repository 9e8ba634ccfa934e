"""An ONNX file as plain values: nodes, constants, inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.external_data_helper import load_external_data_for_model
from onnx.inliner import inline_local_functions
from torch import Tensor

from compressor.errors import TargetError

_SUBGRAPHS = ("If", "Loop", "Scan")


@dataclass(frozen=True)
class Node:
    """One operator; absent inputs and outputs have empty names."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)


@dataclass(frozen=True)
class Input:
    """An input: its type, and its sizes, None where they are free."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Graph:
    """A whole file. `opset` is the version of ONNX's own operators."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    opset: int


def load_graph(path: Path) -> Graph:
    """Reads an ONNX file, with the data file beside it where it has one.

    Raises:
        TargetError: it is none, is damaged, or its operators cannot be read; names them.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        load_external_data_for_model(model, str(path.resolve().parent))
        onnx.checker.check_model(model)
        if model.functions:
            model = inline_local_functions(model)
        return _graph(model)
    except TargetError:
        raise
    except Exception as error:  # onnx and protobuf have errors of their own for every damage
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise TargetError(f"{str(path)!r} must be a valid ONNX file, but: {line}") from error


def _graph(model: Any) -> Graph:
    graph = model.graph
    constants = {one.name: as_tensor(one) for one in graph.initializer}
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return Graph(
        nodes=tuple(map(_node, graph.node)),
        constants=constants,
        inputs=tuple(_input(one) for one in graph.input if one.name not in constants),
        outputs=tuple(one.name for one in graph.output),
        opset=int(opset),
    )


def _node(node: Any) -> Node:
    foreign = node.domain not in ("", "ai.onnx")
    kind = f"{node.domain}.{node.op_type}" if foreign else node.op_type
    name = node.name or (node.output[0] if node.output else "")
    attributes = {} if kind in _SUBGRAPHS else {a.name: _attribute(a) for a in node.attribute}
    return Node(kind, name, tuple(node.input), tuple(node.output), attributes)


def _attribute(attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, onnx.TensorProto):
        return as_tensor(value)
    if isinstance(value, int | float | str):
        return value
    return [v.decode("utf-8") if isinstance(v, bytes) else v for v in value]


def as_tensor(proto: Any) -> Tensor:
    """A tensor of the file; what numpy has no type for raises."""
    return torch.from_numpy(np.array(onnx.numpy_helper.to_array(proto)))


def dtype_of(number: int) -> torch.dtype:
    """The type in torch for ONNX's."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(number)
    return torch.from_numpy(np.zeros(1, dtype=kind)).dtype


def _input(value: Any) -> Input:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        raise TargetError(f"every input must have a shape, but {value.name!r} has none")
    sizes = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return Input(value.name, dtype_of(kind.elem_type), sizes)


def named(nodes: Sequence[Node], most: int = 5) -> str:
    """Names of nodes for an error."""
    names = [node.name for node in nodes]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
