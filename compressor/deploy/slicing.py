"""Cuts one exported ONNX graph into the graph of any architecture, in milliseconds. No torch.

Exporting takes seconds for each network; a search by latency asks for hundreds. The base network
is exported once with its parameters under their names in the state dict. An architecture is then
a matter of cutting these tensors and of the few numbers in the graph that repeat their sizes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from compressor.coupling import Role
from compressor.deploy.leaving_out import LeavingOut
from compressor.deploy.targets import Targets
from compressor.errors import ExportError
from compressor.space import Architecture, SearchSpace


class Graph(Protocol):
    """What can be cut to any architecture; a `BaseGraph`, or several as one."""

    def slice(self, space: SearchSpace, architecture: Architecture) -> bytes:
        """The network of an architecture as a serialised ONNX model; see `BaseGraph.slice`."""


class BaseGraph:
    """The base network as ONNX, ready to be cut. Immutable."""

    def __init__(
        self,
        data: bytes,
        *,
        aliases: Mapping[str, str] | None = None,
        unused: Collection[str] = (),
        scopes: Mapping[str, str] | None = None,
    ) -> None:
        """Reads the exported network.

        Args:
            data: an ONNX model whose initialisers carry the names of the state dict.
            aliases: further names of tensors that the network holds under several names, each
                with the name that the graph uses.
            unused: tensors that the forward pass never reads; cutting them changes nothing.
            scopes: of each operator's first output, the path of the module whose code made it.

        Raises:
            ExportError: `data` is not an ONNX model.
        """
        model = _parsed(data)
        self._aliases = dict(aliases or {})
        self._unused = frozenset(unused)
        self._tensors = {t.name: t for t in model.graph.initializer}
        _plain_casts(model.graph)
        self._leaving_out = LeavingOut(model.graph, scopes or {})
        self._targets = Targets(model.graph, scopes or {})
        _forget_shapes(model.graph)
        self._convs = _convolutions(model.graph)
        # Copied for every slice, so without the weights.
        self._skeleton = ModelProto()
        self._skeleton.CopyFrom(model)
        del self._skeleton.graph.initializer[:]
        self._extra = [t for t in model.graph.initializer if t.name not in self._tensors]

    def slice(self, space: SearchSpace, architecture: Architecture) -> bytes:
        """The network of an architecture as a serialised ONNX model.

        What is kept stays in its order. Sizes written into other operators than convolutions,
        reshapes and expansions are left: ONNX Runtime refuses the graph where they no longer fit.

        Raises:
            ArchitectureError: the architecture is not of this space.
            ExportError: a tensor of the space is not in the graph or too small, a kernel cannot be
                cropped, or it cannot be seen in the graph where a block begins and ends;
                exporting the materialised network is the way out.
        """
        cuts = self._cuts(space, architecture)
        kernels = self._kernels(space, architecture)
        model = ModelProto()
        model.CopyFrom(self._skeleton)
        for name, tensor in self._tensors.items():
            kept = tensor
            if name in cuts or name in kernels:
                values = _cut(name, numpy_helper.to_array(tensor), cuts.get(name, {}))
                kept = numpy_helper.from_array(_crop(values, kernels.get(name)), name)
            model.graph.initializer.append(kept)
        model.graph.initializer.extend(self._extra)
        self._targets.write(model.graph, space.resized(architecture))
        for name in _depthwise(space):
            self._scale_groups(model.graph, self._name(name), cuts)
        for name, kernel in kernels.items():
            self._shrink_kernel(model.graph, name, kernel)
        self._leaving_out.remove(model.graph, space.dropped(architecture))
        return bytes(model.SerializeToString())

    def _name(self, name: str) -> str:
        return self._aliases.get(name, name)

    def _cuts(
        self, space: SearchSpace, architecture: Architecture
    ) -> dict[str, dict[int, set[int]]]:
        """Positions to remove for each tensor of the graph and each of its dimensions."""
        removed = space.removed(architecture)
        self._check_known(name for name, _ in removed)
        cuts: dict[str, dict[int, set[int]]] = {}
        for (name, dim), gone in removed.items():
            if name not in self._unused:
                cuts.setdefault(self._name(name), {}).setdefault(dim, set()).update(gone)
        return cuts

    def _kernels(self, space: SearchSpace, architecture: Architecture) -> dict[str, int]:
        found = space.kernels(architecture)
        self._check_known(found)
        kernels = {self._name(n): k for n, k in found.items() if n not in self._unused}
        for name in kernels:
            if name not in self._convs:
                raise ExportError(
                    "a kernel can only be cropped where a convolution reads it, but none of the "
                    f"graph reads {name!r}; export the materialised network instead"
                )
        return kernels

    def _check_known(self, names: Iterable[str]) -> None:
        missing = sorted(
            {n for n in names if n not in self._unused and self._name(n) not in self._tensors}
        )
        if missing:
            raise ExportError(
                "every tensor that is cut must be in the exported graph under its own name, but "
                f"{', '.join(map(repr, missing))} is not; export the materialised network instead"
            )

    def _scale_groups(
        self, graph: GraphProto, name: str, cuts: Mapping[str, Mapping[int, set[int]]]
    ) -> None:
        """A depthwise convolution has as many groups as channels."""
        gone = cuts.get(name, {}).get(0)
        if not gone:
            return
        size = self._tensors[name].dims[0]
        for index in self._convs.get(name, ()):
            attribute = _attribute(graph.node[index], "group", 1)
            groups, rest = divmod(attribute.i * (size - len(gone)), size)
            if rest:
                raise ExportError(
                    f"channels must leave whole groups, but {size - len(gone)} of {size} rows of "
                    f"{name!r} with {attribute.i} groups do not"
                )
            attribute.i = groups

    def _shrink_kernel(self, graph: GraphProto, name: str, kernel: int) -> None:
        """Padding shrinks with the kernel, so that the output keeps its size."""
        sizes = self._tensors[name].dims[2:]
        for index in self._convs[name]:
            node = graph.node[index]
            ones = [1] * len(sizes)
            _attribute(node, "kernel_shape", ones).ints[:] = [kernel] * len(sizes)
            if _attribute(node, "auto_pad", "NOTSET").s in (b"SAME_UPPER", b"SAME_LOWER"):
                continue
            dilations = _attribute(node, "dilations", ones).ints
            rings = [d * ((size - kernel) // 2) for d, size in zip(dilations, sizes, strict=True)]
            pads = _attribute(node, "pads", [0] * 2 * len(sizes)).ints
            smaller = [p - r for p, r in zip(pads, rings * 2, strict=True)]
            if min(smaller) < 0 or any((size - kernel) % 2 for size in sizes):
                raise ExportError(
                    f"a kernel is cropped evenly and its padding must allow it, but {name!r} goes "
                    f"from {list(sizes)} to {kernel} with padding {list(pads)}; keep this kernel"
                )
            pads[:] = smaller


def _parsed(data: bytes) -> ModelProto:
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's errors have no base that onnx exports
        raise ExportError(f"the base graph is not an ONNX model: {error}") from error
    if not model.graph.output:  # an empty text parses as an empty message
        raise ExportError("the base graph is not an ONNX model: it has no outputs")
    return model


def _depthwise(space: SearchSpace) -> Iterator[str]:
    """Weights that act on each channel alone; only convolutions have groups to scale."""
    for layer in space.layers:
        for coupling in layer.group.couplings if layer.group else ():
            if coupling.role is Role.THROUGH and coupling.dim == 0:
                yield coupling.tensor


def _convolutions(graph: GraphProto) -> dict[str, list[int]]:
    """Indices of the convolutions that read each weight."""
    found: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        if node.op_type in ("Conv", "ConvTranspose"):
            found.setdefault(node.input[1], []).append(index)
    return found


def _attribute(node: NodeProto, name: str, default: int | str | list[int]) -> Any:
    """The node's attribute, made where the node does not write it."""
    for attribute in node.attribute:
        if attribute.name == name:
            return attribute
    node.attribute.append(helper.make_attribute(name, default))
    return node.attribute[-1]


def _cut(name: str, values: NDArray[Any], dims: Mapping[int, set[int]]) -> NDArray[Any]:
    for dim, gone in dims.items():
        size = values.shape[dim] if dim < values.ndim else 0
        if max(gone) >= size or len(gone) >= size:
            raise ExportError(
                f"a cut must leave something of a tensor that is large enough, but {name!r} has "
                f"the shape {list(values.shape)} and position {max(gone)} of dimension {dim} "
                f"is among the {len(gone)} to go; use the model that the space was read from"
            )
        values = np.delete(values, sorted(gone), axis=dim)
    return values


def _crop(values: NDArray[Any], kernel: int | None) -> NDArray[Any]:
    if kernel is None:
        return values
    rings = [(size - kernel) // 2 for size in values.shape[2:]]
    centre = (slice(None), slice(None), *(slice(r, r + kernel) for r in rings))
    return np.ascontiguousarray(values[centre])


def _forget_shapes(graph: GraphProto) -> None:
    """Drops recorded sizes, which a cut makes wrong; ONNX Runtime infers them when loading."""
    del graph.value_info[:]
    for output in graph.output:
        for dim in output.type.tensor_type.shape.dim[1:]:
            dim.Clear()


def _plain_casts(graph: GraphProto) -> None:
    """Names the type that a constant is cast to, instead of an operator's output to copy it from.

    ONNX Runtime can then compute these constants when loading; without that it fuses neither
    BatchNorm nor ReLU6 into the convolutions, and MobileNetV2 takes 2.5 times as long.
    """
    types = {t.name: t.data_type for t in graph.initializer}
    for value in (*graph.value_info, *graph.input):
        types[value.name] = value.type.tensor_type.elem_type
    for node in graph.node:
        if node.op_type == "CastLike" and types.get(node.input[1]):
            kind = types[node.input.pop(1)]
            node.op_type = "Cast"
            node.attribute.append(helper.make_attribute("to", kind))
