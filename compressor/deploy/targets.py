"""Sizes that an exported graph writes into its reshapes, and others in their place. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from onnx import GraphProto, numpy_helper

from compressor.errors import ExportError
from compressor.space import Extent

Dim: TypeAlias = int | str | None
Known: TypeAlias = tuple[Dim, ...]
Shape: TypeAlias = tuple[int | str, ...]


@dataclass(frozen=True)
class _Node:
    """An operator that is told the sizes of its output.

    Attributes:
        index: in the graph.
        shape: of its output; a name for what depends on the batch.
    """

    index: int
    shape: Shape


class Targets:
    """The reshapes of a graph: those that can be freed of sizes, and those that must follow."""

    def __init__(self, graph: GraphProto, scopes: Mapping[str, str]) -> None:
        """Frees what can be freed, in place, and notes the others.

        Args:
            graph: with the shapes that the exporter noted.
            scopes: of each operator's first output, the path of the module whose code made it.
        """
        shapes = known_shapes(graph)
        self._nodes: dict[str, list[_Node]] = {}
        for index, node in enumerate(graph.node):
            shape = shapes.get(node.output[0]) if node.output else None
            known = tuple(d for d in shape or () if d is not None)
            if node.op_type in ("Reshape", "Expand") and known and known == shape:
                path = scopes.get(node.output[0], "")
                self._nodes.setdefault(path, []).append(_Node(index, known))
        _free_reshapes(graph, shapes)

    def write(
        self, graph: GraphProto, resized: Mapping[tuple[str, int], tuple[Extent, int]]
    ) -> None:
        """Gives the operators of calls that are told sizes those of a smaller network.

        An operator belongs to a call if it comes from the same module and makes the same shape,
        or one that ends so, where a call names a part of the sizes. A call without an operator is
        left: exporters drop reshapes that change nothing.

        Raises:
            ExportError: sizes are of parts of a tensor, or two calls want different ones.
        """
        written: dict[int, tuple[int, ...]] = {}
        resized = {key: found for key, found in resized.items() if found[0].exported}
        for extent, _ in resized.values():
            if not (extent.whole or extent.product):  # which graphs write down otherwise
                raise ExportError(
                    "only sizes of whole tensors can be followed in a graph, but "
                    f"{extent.activation!r} names parts or groups; export the materialised network "
                    "instead"
                )
        for name, shape, sizes in _calls(resized):
            for node in self._made_by(name, shape):
                target = _target(graph.node[node.index].op_type, node.shape, sizes)
                if written.setdefault(node.index, target) != target:
                    raise ExportError(
                        f"two calls of one module make the shape {list(shape)}, but shrink "
                        f"differently, {name!r} among them; export the materialised network instead"
                    )
        for index, target in written.items():
            node = graph.node[index]
            name = f"{node.output[0]}__sizes"
            graph.initializer.append(numpy_helper.from_array(np.array(target, np.int64), name))
            node.input[1] = name
            del node.attribute[:]  # `allowzero` would give 0 its other meaning

    def _made_by(self, call: str, shape: tuple[int, ...]) -> list[_Node]:
        nodes = self._nodes.get(call.rpartition("@")[0], [])
        ends = [node for node in nodes if _fits(node.shape[-len(shape) :], shape)]
        return [node for node in ends if len(node.shape) == len(shape)] or ends


def _calls(
    resized: Mapping[tuple[str, int], tuple[Extent, int]],
) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Calls of sized operators: name, sizes of the original, sizes now."""
    found: dict[str, tuple[tuple[int, ...], dict[int, int]]] = {}
    for (name, dim), (extent, now) in resized.items():
        if not extent.product:
            found.setdefault(name, (extent.shape, {}))[1][dim] = now
    for name, (shape, changed) in found.items():
        yield name, shape, tuple(changed.get(d, size) for d, size in enumerate(shape))


def _fits(shape: Shape, sizes: tuple[int, ...]) -> bool:
    """Whether an operator's output is what a call makes of one input."""
    return len(shape) == len(sizes) and all(
        _for_one(a) in (None, b) for a, b in zip(shape, sizes, strict=True)
    )


def _for_one(size: int | str) -> int | None:
    """A size such as `12*batch` for one input; None where it is not such a product."""
    if isinstance(size, int):
        return size
    factors = [factor.strip() for factor in size.split("*")]
    if not all(factor.isdecimal() or factor.isidentifier() for factor in factors):
        return None
    return math.prod(int(factor) for factor in factors if factor.isdecimal())


def _target(kind: str, shape: Shape, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """What the operator is told: the batch is what is left, or stays."""
    free = -1 if kind == "Reshape" else 1
    wanted = (*shape[: len(shape) - len(sizes)], *sizes)
    target = tuple(free if isinstance(d, str) else int(d) for d in _named(shape, wanted))
    if kind == "Reshape" and target.count(-1) > 1:
        raise ExportError(
            f"a reshape can leave one size open, but {list(shape)} has several that depend on the "
            "batch; export the materialised network instead"
        )
    return target


def _named(shape: Shape, wanted: Shape) -> Iterator[int | str]:
    """The sizes wanted, with the names of those that depend on the batch."""
    for before, now in zip(shape, wanted, strict=True):
        yield before if isinstance(before, str) else now


def _free_reshapes(graph: GraphProto, shapes: Mapping[str, Known]) -> None:
    """Writes targets of reshapes without the sizes of channels where that is safe.

    Leading dimensions that stay become 0 ("as in the input"), a single one after them becomes
    -1 ("what is left"). Both hold for every width. Other targets are left as they are.
    """
    for node in graph.node:
        if node.op_type != "Reshape":
            continue
        target = _free_target(shapes.get(node.input[0]), shapes.get(node.output[0]))
        if target is not None:
            name = f"{node.output[0]}__target"
            graph.initializer.append(numpy_helper.from_array(np.array(target, np.int64), name))
            node.input[1] = name
            del node.attribute[:]  # `allowzero` would give 0 its other meaning


def _free_target(before: Known | None, after: Known | None) -> list[int] | None:
    if before is None or after is None or None in before or 0 in before:
        return None
    same = 0
    while same < min(len(before), len(after)) and before[same] == after[same]:
        same += 1
    rest = after[same:]
    if len(rest) <= 1:
        return [0] * same + [-1] * len(rest)
    # Several sizes are left: which of them a cut changes is not written in the graph.
    sizes = [d for d in rest if isinstance(d, int)]
    return [0] * same + sizes if len(sizes) == len(rest) else None


def known_shapes(graph: GraphProto) -> dict[str, Known]:
    """Shapes of a graph's tensors as far as they are noted in it."""
    shapes: dict[str, Known] = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            shapes[value.name] = tuple(
                d.dim_param or (d.dim_value if d.HasField("dim_value") else None) for d in dims
            )
    return shapes
