"""Which part of a network each operator of its ONNX graph comes from. Knows no torch."""

from __future__ import annotations

from pathlib import Path

import onnx

from compressor.device.profile import Origin
from compressor.errors import MeasureError


def origins(model: Path | bytes) -> dict[str, Origin]:
    """Name of an operator, and of each of its outputs, to where it comes from.

    The exporter keeps the names of parameters (`features.0.0.weight`), so an operator that reads
    one belongs to `features.0.0`, also through operators on constants alone, as in a quantised
    graph. One that reads none belongs where the first tensor it reads comes from: an activation
    to its convolution, a sum to one of its branches.

    Raises:
        MeasureError: the file is not an ONNX model.
    """
    graph = _graph(model)
    # Of each tensor that does not depend on the input: whose it is, and its shape.
    constants = {t.name: (_owner(t.name), tuple(t.dims)) for t in graph.initializer}
    found: dict[str, Origin] = {}
    for node in graph.node:
        inputs = [name for name in node.input if name]
        read = [constants[name] for name in inputs if name in constants]
        if len(read) == len(inputs):
            constants |= dict.fromkeys(node.output, read[0] if read else ("", ()))
            continue
        module = next((owner for owner, _ in read if owner), "")
        before = next((found[name] for name in inputs if name in found), Origin())
        own = Origin(module, _form(node, read)) if module else before
        found |= dict.fromkeys([*node.output, *([node.name] if node.name else [])], own)
    return found


def _graph(model: Path | bytes) -> onnx.GraphProto:
    try:
        if isinstance(model, bytes):
            return onnx.load_from_string(model).graph
        # Weights in a file of their own are not needed for their names.
        return onnx.load(str(model), load_external_data=False).graph
    except Exception as error:  # protobuf's and the file system's errors have no common base
        name = "a model in memory" if isinstance(model, bytes) else str(model)
        raise MeasureError(f"the operators of {name} cannot be read: {error}") from error


def _owner(parameter: str) -> str:
    """`a.b` of `a.b.weight`; empty for a constant that the exporter made up."""
    return parameter.rpartition(".")[0]


def _form(node: onnx.NodeProto, read: list[tuple[str, tuple[int, ...]]]) -> str:
    """What decides the speed of a convolution: its kernel, and whether it mixes channels."""
    weight = next((dims for _, dims in read if len(dims) > 2), None)
    if weight is None or "Conv" not in node.op_type:
        return ""
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    form = "x".join(map(str, weight[2:]))
    if groups > 1:
        form += " depthwise" if weight[1] == 1 else " grouped"
    return form
