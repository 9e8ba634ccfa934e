"""Puts ONNX graphs that read the same inputs into one graph. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnx import AttributeProto, GraphProto, ModelProto, TypeProto, ValueInfoProto

from compressor.deploy.slicing import Graph
from compressor.errors import ExportError
from compressor.space import Architecture, SearchSpace


def joined(models: Mapping[str, ModelProto]) -> ModelProto:
    """One model that reads the inputs once and gives every model's outputs, in order.

    Inputs have the names that the first model gives them. All else has its model's name in front,
    as in `NAME/body.0.weight`. An output is called as its model where that has no other, and
    `NAME/OUTPUT` otherwise. Nothing is computed in common, whatever is equal.

    Args:
        models: by name; of one exporter and its settings. Not touched. Names hold no `/`.

    Raises:
        ExportError: their inputs or their operator sets differ.
    """
    (first, model), *others = models.items()
    for name, other in others:
        _require_alike(first, model, name, other)
    shared = [value.name for value in model.graph.input]
    whole = ModelProto()
    whole.CopyFrom(model)
    del whole.metadata_props[:]
    whole.graph.Clear()
    whole.graph.name = "joint"
    whole.graph.input.extend(model.graph.input)
    known = {o.domain for o in whole.opset_import}
    for name, each in models.items():
        whole.opset_import.extend(o for o in each.opset_import if o.domain not in known)
        known |= {o.domain for o in each.opset_import}
        part = GraphProto()
        part.CopyFrom(each.graph)
        _rename(part, _names(name, part, shared))
        whole.graph.node.extend(part.node)
        whole.graph.initializer.extend(part.initializer)
        whole.graph.value_info.extend(part.value_info)
        whole.graph.output.extend(part.output)
    return whole


def joined_bytes(models: Mapping[str, bytes]) -> bytes:
    """`joined` for serialised models."""
    parsed = {name: ModelProto.FromString(data) for name, data in models.items()}
    return bytes(joined(parsed).SerializeToString())


class JointGraph:
    """Several exported networks of one architecture as one graph; a `slicing.Graph`."""

    def __init__(self, parts: Mapping[str, tuple[Graph, SearchSpace]]) -> None:
        """Takes for each network its graph and how that may be cut, all with the same layers."""
        self._parts = dict(parts)

    def slice(self, space: SearchSpace, architecture: Architecture) -> bytes:
        """All networks of an architecture as one serialised ONNX model; each by its own space.

        Raises:
            ArchitectureError: the architecture is not of this space.
            ExportError: a network cannot be cut, or the graphs cannot be put together.
        """
        space.validate(architecture)
        return joined_bytes(
            {name: graph.slice(own, architecture) for name, (graph, own) in self._parts.items()}
        )


def _names(name: str, graph: GraphProto, shared: list[str]) -> Callable[[str], str]:
    """What becomes of a name in a model's graph."""
    special = dict(zip((v.name for v in graph.input), shared, strict=True))
    if len(graph.output) == 1 and name not in shared:
        special.setdefault(graph.output[0].name, name)
    return lambda old: special.get(old, f"{name}/{old}") if old else ""


def _rename(graph: GraphProto, new: Callable[[str], str]) -> None:
    """Renames all that a graph, and the graphs within its operators, define or read."""
    for node in graph.node:
        node.name = new(node.name)
        node.input[:] = map(new, node.input)
        node.output[:] = map(new, node.output)
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                _rename(inner, new)
    for tensor in graph.initializer:
        tensor.name = new(tensor.name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = new(value.name)


def _graphs(attribute: AttributeProto) -> list[GraphProto]:
    return [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


def _require_alike(first: str, model: ModelProto, name: str, other: ModelProto) -> None:
    kinds = [list(map(_kind, m.graph.input)) for m in (model, other)]
    if kinds[0] != kinds[1]:
        raise ExportError(
            f"networks in one file read the same inputs, but {first!r} reads "
            f"{', '.join(kinds[0])} and {name!r} {', '.join(kinds[1])}; leave the joint file out"
        )
    versions, theirs = ({o.domain: o.version for o in m.opset_import} for m in (model, other))
    apart = [d for d in versions.keys() & theirs.keys() if versions[d] != theirs[d]]
    if apart or model.functions or other.functions:
        raise ExportError(
            "networks in one file use one version of each operator set and no functions of their "
            f"own, but {first!r} uses {versions} and {len(model.functions)} functions, {name!r} "
            f"{theirs} and {len(other.functions)}; leave the joint file out"
        )


def _kind(value: ValueInfoProto) -> str:
    """Type and sizes of an input; names of sizes, as of the batch, do not matter."""
    tensor: TypeProto.Tensor = value.type.tensor_type
    sizes = [str(d.dim_value) if d.HasField("dim_value") else "any" for d in tensor.shape.dim]
    return f"{tensor.elem_type}[{', '.join(sizes)}]"
