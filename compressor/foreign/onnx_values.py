"""ONNX operators that compute: element by element, over windows, along dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compressor.foreign.onnx_graph import Node
from compressor.foreign.onnx_layers import padded, padding
from compressor.foreign.onnx_reader import Reader, Unreadable
from compressor.foreign.steps import Value

_Handler = Callable[[Reader, Node], None]

_UNARY: Mapping[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Ceil": torch.ceil, "Cos": torch.cos, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "HardSwish": functional.hardswish, "Log": torch.log,
    "Mish": functional.mish, "Neg": torch.neg, "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round,
    "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Softplus": functional.softplus,
    "Softsign": functional.softsign, "Sqrt": torch.sqrt, "Tanh": torch.tanh,
}  # fmt: skip
# with attributes: the function, and of each attribute its name in torch and what it is if not given
_ACTIVATIONS: Mapping[str, tuple[Callable[..., Any], dict[str, tuple[str, Any]]]] = {
    "Celu": (functional.celu, {"alpha": ("alpha", 1.0)}),
    "Elu": (functional.elu, {"alpha": ("alpha", 1.0)}),
    "Gelu": (functional.gelu, {"approximate": ("approximate", "none")}),
    "LeakyRelu": (functional.leaky_relu, {"alpha": ("negative_slope", 0.01)}),
}
_BINARY: Mapping[str, Callable[..., Any]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Pow": torch.pow, "Equal": torch.eq,
    "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le,
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
}  # fmt: skip
_REDUCED: Mapping[str, Callable[..., Any]] = {
    "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax,
    "ReduceMin": torch.amin, "ReduceL2": torch.linalg.vector_norm,
}  # fmt: skip


def _unary(function: Callable[..., Any]) -> _Handler:
    return lambda reader, node: reader.emit(node.outputs, function, [Value(node.inputs[0])])


def _activation(function: Callable[..., Any], names: Mapping[str, tuple[str, Any]]) -> _Handler:
    def handle(reader: Reader, node: Node) -> None:
        kept = {ours: node.get(theirs, least) for theirs, (ours, least) in names.items()}
        reader.emit(node.outputs, function, [Value(node.inputs[0])], kept)

    return handle


def _binary(function: Callable[..., Any]) -> _Handler:
    return lambda reader, node: reader.emit(node.outputs, function, operands(reader, node))


def operands(reader: Reader, node: Node) -> list[Any]:
    """Two operands; a single number beside a tensor is that number."""
    found: list[Any] = []
    for place, name in enumerate(node.inputs):
        value, other = reader.values[name], reader.values[node.inputs[1 - place]]
        alone = not reader.is_free(name) and value.numel() == 1 and value.dim() <= other.dim()
        beside = reader.is_free(node.inputs[1 - place]) and value.dtype == other.dtype
        # the second place alone takes numbers in every function of torch
        found.append(value.item() if alone and beside and place else Value(name))
    return found


def _div(reader: Reader, node: Node) -> None:
    whole = not reader.value(node, 0).is_floating_point()
    kept = {"rounding_mode": "trunc"} if whole else {}
    reader.emit(node.outputs, torch.div, operands(reader, node), kept)


def _mod(reader: Reader, node: Node) -> None:
    function = torch.fmod if node.get("fmod", 0) else torch.remainder
    reader.emit(node.outputs, function, operands(reader, node))


def _extreme(function: Callable[..., Any]) -> _Handler:
    def handle(reader: Reader, node: Node) -> None:
        name = node.inputs[0]
        for number, other in enumerate(node.inputs[1:], 2):
            out = f"{node.outputs[0]}/{number}" if number < len(node.inputs) else node.outputs[0]
            reader.emit([out], function, [Value(name), Value(other)])
            name = out
        if len(node.inputs) == 1:
            reader.emit(node.outputs, torch.clone, [Value(name)])

    return handle


def _where(reader: Reader, node: Node) -> None:
    reader.emit(node.outputs, torch.where, [Value(name) for name in node.inputs])


def _clip(reader: Reader, node: Node) -> None:
    low, high = node.get("min"), node.get("max")
    for place in (1, 2):
        given = reader.fixed(node, place)
        if given is not None:
            low, high = (given.item(), high) if place == 1 else (low, given.item())
    source = Value(node.inputs[0])
    if low is None and high is None:
        reader.emit(node.outputs, torch.clone, [source])
    elif low == 0 and high is None:
        reader.emit(node.outputs, torch.relu, [source])
    elif low is not None and high is not None:
        reader.emit(node.outputs, functional.hardtanh, [source, low, high])
    else:
        reader.emit(node.outputs, torch.clamp, [source], {"min": low, "max": high})


def _hard_sigmoid(reader: Reader, node: Node) -> None:
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        reader.emit(node.outputs, functional.hardsigmoid, [Value(node.inputs[0])])
        return
    reader.emit(node.outputs, hard_sigmoid, [Value(node.inputs[0])], {"alpha": alpha, "beta": beta})


def hard_sigmoid(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    """`min(max(alpha * x + beta, 0), 1)`."""
    return (x * alpha + beta).clamp(0, 1)


def _softmax(function: Callable[..., Any]) -> _Handler:
    def handle(reader: Reader, node: Node) -> None:
        old, dims = reader.graph.opset < 13, reader.value(node, 0).dim()
        axis = node.get("axis", 1 if old else -1) % dims
        if old and axis != dims - 1:
            raise Unreadable("before opset 13 it normalises several dimensions at once")
        reader.emit(node.outputs, function, [Value(node.inputs[0])], {"dim": axis})

    return handle


def _reduce(function: Callable[..., Any]) -> _Handler:
    def handle(reader: Reader, node: Node) -> None:
        dims = node.get("axes") or reader.numbers(node, 1)
        if not dims:
            if node.get("noop_with_empty_axes", 0):
                reader.emit(node.outputs, torch.clone, [Value(node.inputs[0])])
                return
            dims = list(range(reader.value(node, 0).dim()))
        kept = {"dim": tuple(dims), "keepdim": bool(node.get("keepdims", 1))}
        reader.emit(node.outputs, function, [Value(node.inputs[0])], kept)

    return handle


def _arg_max(reader: Reader, node: Node) -> None:
    kept = {"dim": node.get("axis", 0), "keepdim": bool(node.get("keepdims", 1))}
    reader.emit(node.outputs, torch.argmax, [Value(node.inputs[0])], kept)


def _global(function: Callable[..., Any]) -> _Handler:
    def handle(reader: Reader, node: Node) -> None:
        dims = tuple(range(2, reader.value(node, 0).dim()))
        reader.emit(node.outputs, function, [Value(node.inputs[0])], {"dim": dims, "keepdim": True})

    return handle


_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEAN = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _max_pool(reader: Reader, node: Node) -> None:
    if len([o for o in node.outputs if o]) > 1:
        raise Unreadable("the places of the maxima are used too")
    window = node.get("kernel_shape")
    before, after = padding(node, reader.value(node, 0).shape[2:], window)
    source = node.inputs[0]
    if before != after or any(2 * b > k for b, k in zip(before, window, strict=True)):
        source = padded(reader, node, before, after, float("-inf"))
        before = [0] * len(before)
    kept = {
        "stride": list(node.get("strides") or [1] * len(window)),
        "padding": before,
        "dilation": list(node.get("dilations") or [1] * len(window)),
        "ceil_mode": bool(node.get("ceil_mode", 0)),
    }
    reader.emit(node.outputs, _of_dims(_MAX, window), [Value(source), list(window)], kept)


def _average_pool(reader: Reader, node: Node) -> None:
    window, counted = node.get("kernel_shape"), bool(node.get("count_include_pad", 0))
    before, after = padding(node, reader.value(node, 0).shape[2:], window)
    source = node.inputs[0]
    if any(d != 1 for d in node.get("dilations") or [1]):
        raise Unreadable("its window is dilated")
    if before != after:
        if not counted:
            raise Unreadable("its padding differs from side to side and is not counted")
        source, before = padded(reader, node, before, after), [0] * len(before)
    kept = {
        "stride": list(node.get("strides") or [1] * len(window)),
        "padding": before,
        "ceil_mode": bool(node.get("ceil_mode", 0)),
        "count_include_pad": counted,
    }
    reader.emit(node.outputs, _of_dims(_MEAN, window), [Value(source), list(window)], kept)


def _of_dims(functions: Mapping[int, Any], window: Sequence[int]) -> Callable[..., Any]:
    found: Callable[..., Any] | None = functions.get(len(window))
    if found is None:
        raise Unreadable(f"its window has {len(window)} dimensions")
    return found


def _resize(reader: Reader, node: Node) -> None:
    """Sizes of the output from the example: the same for every input."""
    source = reader.value(node, 0)
    old = node.kind == "Upsample" or reader.graph.opset < 11
    scales = node.get("scales") or reader.fixed(node, 1 if old else 2)
    given = None if old else reader.numbers(node, 3)
    if given:
        sizes = given
    elif scales is not None:
        factors = scales.tolist() if isinstance(scales, Tensor) else scales
        sizes = [int(size * f) for size, f in zip(source.shape, factors, strict=True)]
    else:
        raise Unreadable("it has neither sizes nor scales")
    if list(sizes[:2]) != list(source.shape[:2]) or source.dim() != 4 or node.get("axes"):
        raise Unreadable("it resizes other dimensions than height and width")
    how, place = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "")
    if how == "nearest":
        reader.emit(node.outputs, functional.interpolate, [Value(node.inputs[0])],
                    {"size": list(sizes[2:]), "mode": "nearest"})  # fmt: skip
        return
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(how)
    if mode is None:
        raise Unreadable(f"its mode is {how}")
    kept = {"size": list(sizes[2:]), "mode": mode, "align_corners": place == "align_corners",
            "antialias": bool(node.get("antialias", 0))}  # fmt: skip
    reader.emit(node.outputs, functional.interpolate, [Value(node.inputs[0])], kept)


def _einsum(reader: Reader, node: Node) -> None:
    names = [Value(name) for name in node.inputs]
    reader.emit(node.outputs, torch.einsum, [node.get("equation"), *names])


VALUES: Mapping[str, _Handler] = {
    **{kind: _unary(function) for kind, function in _UNARY.items()},
    **{kind: _activation(*both) for kind, both in _ACTIVATIONS.items()},
    **{kind: _binary(function) for kind, function in _BINARY.items()},
    **{kind: _reduce(function) for kind, function in _REDUCED.items()},
    "ArgMax": _arg_max,
    "AveragePool": _average_pool,
    "Clip": _clip,
    "Div": _div,
    "Einsum": _einsum,
    "GlobalAveragePool": _global(torch.mean),
    "GlobalMaxPool": _global(torch.amax),
    "HardSigmoid": _hard_sigmoid,
    "LogSoftmax": _softmax(functional.log_softmax),
    "Max": _extreme(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _extreme(torch.minimum),
    "Mod": _mod,
    "Resize": _resize,
    "Softmax": _softmax(functional.softmax),
    "Upsample": _resize,
    "Where": _where,
}
