"""ONNX operators that move elements, make constants, or change shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from compressor.foreign.onnx_graph import Node, dtype_of
from compressor.foreign.onnx_reader import Reader, Unreadable
from compressor.foreign.steps import Value


def _same(reader: Reader, node: Node) -> None:
    reader.emit(node.outputs[:1], same, [Value(node.inputs[0])])


def same(x: Tensor) -> Tensor:
    """What it is given."""
    return x


def _reshape(reader: Reader, node: Node) -> None:
    source, sizes = reader.value(node, 0), reader.numbers(node, 1)
    if sizes is None:
        raise Unreadable("it has no shape")
    if not node.get("allowzero", 0):
        sizes = [source.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    reader.emit(node.outputs, Tensor.reshape, [Value(node.inputs[0]), sizes])


def _flatten(reader: Reader, node: Node) -> None:
    axis, dims = node.get("axis", 1), reader.value(node, 0).dim()
    if axis % dims == 1:
        reader.emit(node.outputs, torch.flatten, [Value(node.inputs[0]), 1])
        return
    front = int(torch.Size(reader.value(node, 0).shape[: axis % dims or 0]).numel())
    reader.emit(node.outputs, Tensor.reshape, [Value(node.inputs[0]), [front, -1]])


def _transpose(reader: Reader, node: Node) -> None:
    order = node.get("perm") or list(range(reader.value(node, 0).dim()))[::-1]
    reader.emit(node.outputs, torch.permute, [Value(node.inputs[0]), list(order)])


def _axes(reader: Reader, node: Node) -> list[int] | None:
    """An attribute before opset 13, an input since."""
    found = node.get("axes")
    return list(found) if found is not None else reader.numbers(node, 1)


def _squeeze(reader: Reader, node: Node) -> None:
    dims, source = _axes(reader, node), reader.value(node, 0)
    if dims is None:
        dims = [d for d, size in enumerate(source.shape) if size == 1]
    if any(source.shape[d] != 1 for d in dims):
        raise Unreadable("it drops dimensions that are not 1")
    reader.emit(node.outputs, torch.squeeze, [Value(node.inputs[0]), tuple(dims)])


def _unsqueeze(reader: Reader, node: Node) -> None:
    whole = reader.value(node, 0).dim() + len(_axes(reader, node) or ())
    source = node.inputs[0]
    places = sorted(d % whole for d in _axes(reader, node) or ())
    for number, dim in enumerate(places):
        last = number == len(places) - 1
        out = node.outputs[0] if last else f"{node.outputs[0]}/{number}"
        reader.emit([out], torch.unsqueeze, [Value(source), dim])
        source = out


def _concat(reader: Reader, node: Node) -> None:
    reader.emit(node.outputs, torch.cat, [[Value(n) for n in node.inputs], node.get("axis")])


def _split(reader: Reader, node: Node) -> None:
    dim, sizes = node.get("axis", 0), node.get("split") or reader.numbers(node, 1)
    whole, parts = reader.value(node, 0).shape[dim], len(node.outputs)
    if not sizes:
        size = -(-whole // parts)
        sizes = [min(size, whole - size * i) for i in range(parts)]
    equal = len(set(sizes)) == 1
    given = sizes[0] if equal else list(sizes)
    reader.emit(node.outputs, torch.split, [Value(node.inputs[0]), given, dim], several=True)


def _slice(reader: Reader, node: Node) -> None:
    source, out = reader.value(node, 0), node.outputs[0]
    starts, ends, axes, steps = (
        node.get(name) or reader.numbers(node, place + 1)
        for place, name in enumerate(("starts", "ends", "axes", "steps"))
    )
    if starts is None or ends is None:
        raise Unreadable("it has no start or end")
    axes = axes or list(range(len(starts)))
    cuts = list(zip(axes, starts, ends, steps or [1] * len(starts), strict=True))
    name = node.inputs[0]
    for number, (axis, start, end, step) in enumerate(cuts):
        size = source.shape[axis]
        result = out if number == len(cuts) - 1 else f"{out}/{number}"
        if step < 0:
            if (start, step) not in ((-1, -1), (size - 1, -1)) or end >= -size:
                raise Unreadable("it goes backwards")
            reader.emit([result], torch.flip, [Value(name), [axis]])
        else:
            places = [axis, start, None if end >= size else end, step]
            reader.emit([result], torch.ops.aten.slice.Tensor, [Value(name), *places])
        name = result


def _gather(reader: Reader, node: Node) -> None:
    dim = node.get("axis", 0)
    if reader.is_free(node.inputs[1]):
        if dim != 0:
            raise Unreadable("it gathers along another dimension than the first")
        where, table = Value(node.inputs[1]), Value(node.inputs[0])
        reader.emit(node.outputs, functional.embedding, [where, table])
        return
    index = reader.fixed(node, 1)
    assert index is not None  # noqa: S101  (the operator has two inputs)
    size = reader.value(node, 0).shape[dim]
    index = torch.where(index < 0, index + size, index)
    every = torch.arange(size, dtype=index.dtype)
    if reader.is_size(node.inputs[1]) and torch.equal(index.reshape(-1), every):
        sizes = list(reader.value(node, 0).shape)  # of a batch all
        sizes[dim % len(sizes) : dim % len(sizes) + 1] = index.shape
        reader.emit(node.outputs, Tensor.reshape, [Value(node.inputs[0]), sizes])
        return
    if index.dim() == 0:
        reader.emit(node.outputs, torch.select, [Value(node.inputs[0]), dim, int(index)])
        return
    name = f"{node.outputs[0]}/index"
    reader.values[name] = index.reshape(-1).long()
    rows = node.outputs[0] if index.dim() == 1 else f"{node.outputs[0]}/rows"
    reader.emit([rows], torch.index_select, [Value(node.inputs[0]), dim, Value(name)])
    if index.dim() != 1:
        sizes = list(reader.value(node, 0).shape)
        sizes[dim % len(sizes) : dim % len(sizes) + 1] = index.shape
        reader.emit(node.outputs, Tensor.reshape, [Value(rows), sizes])


def _expand(reader: Reader, node: Node) -> None:
    sizes, source = reader.numbers(node, 1), reader.value(node, 0)
    whole = list(torch.broadcast_shapes(source.shape, tuple(sizes or ())))  # type: ignore[no-untyped-call]
    sized = reader.is_size(node.inputs[1])
    reader.emit(node.outputs, Tensor.expand, [Value(node.inputs[0]), whole], sized=sized)


def _tile(reader: Reader, node: Node) -> None:
    times, sized = reader.numbers(node, 1), reader.is_size(node.inputs[1])
    reader.emit(node.outputs, Tensor.repeat, [Value(node.inputs[0]), times], sized=sized)


def _pad(reader: Reader, node: Node) -> None:
    widths = node.get("pads") or reader.numbers(node, 1) or []
    dims = reader.value(node, 0).dim()
    axes = reader.numbers(node, 3) or list(range(dims))
    before, after = [0] * dims, [0] * dims
    for axis, less, more in zip(axes, widths[: len(axes)], widths[len(axes) :], strict=True):
        before[axis], after[axis] = less, more
    last = max((d for d in range(dims) if before[d] or after[d]), default=0)
    first = min((d for d in range(dims) if before[d] or after[d]), default=dims)
    if last < first:
        _same(reader, node)
        return
    mode = {"edge": "replicate", "wrap": "circular"}.get(node.get("mode"), node.get("mode"))
    start = 2 if mode not in (None, "constant") else first
    pairs = [w for d in range(dims - 1, start - 1, -1) for w in (before[d], after[d])]
    if start > first:
        raise Unreadable(f"it pads channels by {mode}")
    given = reader.fixed(node, 2)
    value = float(node.get("value", 0.0) if given is None else given.reshape(-1)[0])
    kept = {"mode": mode or "constant"} | ({"value": value} if value else {})
    reader.emit(node.outputs, functional.pad, [Value(node.inputs[0]), pairs], kept)


def _depth_to_space(reader: Reader, node: Node) -> None:
    size = node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        reader.emit(node.outputs, functional.pixel_shuffle, [Value(node.inputs[0]), size])
        return
    n, c, h, w = reader.value(node, 0).shape
    one, two = f"{node.outputs[0]}/0", f"{node.outputs[0]}/1"
    split = [n, size, size, c // size**2, h, w]
    reader.emit([one], Tensor.reshape, [Value(node.inputs[0]), split])
    reader.emit([two], torch.permute, [Value(one), [0, 3, 4, 1, 5, 2]])
    sizes = [n, c // size**2, h * size, w * size]
    reader.emit(node.outputs, Tensor.reshape, [Value(two), sizes])


def _space_to_depth(reader: Reader, node: Node) -> None:
    size = node.get("blocksize")
    n, c, h, w = reader.value(node, 0).shape
    one, two = f"{node.outputs[0]}/0", f"{node.outputs[0]}/1"
    split = [n, c, h // size, size, w // size, size]
    reader.emit([one], Tensor.reshape, [Value(node.inputs[0]), split])
    reader.emit([two], torch.permute, [Value(one), [0, 3, 5, 1, 2, 4]])
    reader.emit(node.outputs, Tensor.reshape, [Value(two), [n, c * size**2, h // size, w // size]])


def _constant(reader: Reader, node: Node) -> None:
    found = next(iter(node.attributes.values()), None)
    if isinstance(found, str) or found is None:
        raise Unreadable("it is a text")
    if not isinstance(found, Tensor):
        whole = isinstance(found, int) or (isinstance(found, list) and
                                           all(isinstance(v, int) for v in found))  # fmt: skip
        found = torch.tensor(found, dtype=torch.int64 if whole else torch.float32)
    reader.values[node.outputs[0]] = found


def _constant_of_shape(reader: Reader, node: Node) -> None:
    value = node.get("value", torch.zeros(1))
    sizes = reader.numbers(node, 0) or []
    kept = {"dtype": value.dtype}
    sized = reader.is_size(node.inputs[0])
    reader.emit(node.outputs, torch.full, [sizes, value.reshape(-1)[0].item()], kept, sized=sized)


def _shape(reader: Reader, node: Node) -> None:
    sizes = list(reader.value(node, 0).shape)[node.get("start", 0) : node.get("end")]
    found = torch.tensor(sizes, dtype=torch.int64)
    if reader.is_free(node.inputs[0]):
        reader.size(node.outputs[0], found)
    else:
        reader.values[node.outputs[0]] = found


def _size(reader: Reader, node: Node) -> None:
    reader.values[node.outputs[0]] = torch.tensor(reader.value(node, 0).numel())


def _range(reader: Reader, node: Node) -> None:
    first, limit, step = (reader.fixed(node, place) for place in range(3))
    assert first is not None and limit is not None and step is not None  # noqa: S101, PT018
    found = torch.arange(first.item(), limit.item(), step.item(), dtype=first.dtype)
    if any(reader.is_size(name) for name in node.inputs):
        reader.size(node.outputs[0], found)
    else:
        reader.values[node.outputs[0]] = found


def _cast(reader: Reader, node: Node) -> None:
    reader.emit(node.outputs, Tensor.to, [Value(node.inputs[0]), dtype_of(node.get("to"))])


MOVES: Mapping[str, Callable[[Reader, Node], None]] = {
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Dropout": _same,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _same,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
