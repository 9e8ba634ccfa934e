"""ONNX operators with weights: convolutions, products, normalisations, recurrent ones aside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.foreign import layers
from compressor.foreign.layers import Layer
from compressor.foreign.onnx_graph import Node
from compressor.foreign.onnx_reader import Reader, Unreadable
from compressor.foreign.steps import Value


def padding(node: Node, sizes: Sequence[int], window: Sequence[int]) -> tuple[list[int], list[int]]:
    """What is added before and after each dimension behind the channels.

    Args:
        node: with `pads` or `auto_pad`, `strides` and `dilations`.
        sizes: of these dimensions.
        window: of the kernel.
    """
    dims = len(window)
    given, how = node.get("pads"), node.get("auto_pad", "NOTSET")
    if how in ("NOTSET", ""):
        given = given or [0] * (2 * dims)
        return list(given[:dims]), list(given[dims:])
    if how == "VALID":
        return [0] * dims, [0] * dims
    strides, dilations = (node.get(n) or [1] * dims for n in ("strides", "dilations"))
    whole = [
        max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
        for size, s, d, k in zip(sizes, strides, dilations, window, strict=True)
    ]
    less, more = [n // 2 for n in whole], [n - n // 2 for n in whole]
    return (less, more) if how == "SAME_UPPER" else (more, less)


def padded(reader: Reader, node: Node, before: Sequence[int], after: Sequence[int],
           value: float = 0.0) -> str:  # fmt: skip
    """The name of the first input with something added around it."""
    source = node.inputs[0]
    if not any(before) and not any(after):
        return source
    widths = [w for pair in zip(reversed(before), reversed(after), strict=True) for w in pair]
    name = f"{node.outputs[0]}/padded"
    reader.emit([name], functional.pad, [Value(source), widths], {"value": value})
    return name


def _conv(reader: Reader, node: Node) -> None:
    weight = _weight(reader, node, 1)
    bias = reader.fixed(node, 2)
    before, after = padding(node, reader.value(node, 0).shape[2:], weight.shape[2:])
    source = node.inputs[0]
    if before != after:
        source, before = padded(reader, node, before, after), [0] * len(before)
    _add(reader, node, source, layers.convolution(
        weight, bias, stride=node.get("strides") or [1], padding=before,
        dilation=node.get("dilations") or [1], groups=node.get("group", 1),
    ))  # fmt: skip


def _conv_transpose(reader: Reader, node: Node) -> None:
    weight = _weight(reader, node, 1)
    dims = weight.dim() - 2
    pads = node.get("pads") or [0] * (2 * dims)
    if node.get("output_shape") or node.get("auto_pad", "NOTSET") != "NOTSET":
        raise Unreadable("its padding is given by the output's size")
    if pads[:dims] != pads[dims:]:
        raise Unreadable("its padding differs from side to side")
    _add(reader, node, node.inputs[0], layers.convolution(
        weight, reader.fixed(node, 2), stride=node.get("strides") or [1], padding=pads[:dims],
        dilation=node.get("dilations") or [1], groups=node.get("group", 1), transposed=True,
        output_padding=node.get("output_padding") or [0],
    ))  # fmt: skip


def _weight(reader: Reader, node: Node, place: int) -> Tensor:
    found = reader.fixed(node, place)
    if found is None:
        raise Unreadable("it has no weights")
    return found


def _add(reader: Reader, node: Node, source: str, layer: Layer | None) -> None:
    if layer is None:
        raise Unreadable("torch has no such layer")
    reader.emit_layer(node, node.inputs[1], layer, source, node.outputs[0])


def _gemm(reader: Reader, node: Node) -> None:
    plain = node.get("alpha", 1.0) == node.get("beta", 1.0) == 1.0 and not node.get("transA", 0)
    if not plain or reader.is_free(node.inputs[1]) or not reader.is_free(node.inputs[0]):
        _free_gemm(reader, node)
        return
    weight, bias = _weight(reader, node, 1), reader.fixed(node, 2)
    weight = weight if node.get("transB", 0) else reader.turned(node.inputs[1])
    if bias is not None:
        bias = bias.expand(1, weight.shape[0]).reshape(-1).contiguous()
    _add(reader, node, node.inputs[0], layers.linear(weight, bias))


def _free_gemm(reader: Reader, node: Node) -> None:
    """The general product, of which torch has no layer."""
    names = [Value(name) for name in node.inputs if name]
    kept = {n: node.get(n, d) for n, d in (("alpha", 1.0), ("beta", 1.0), ("transA", 0),
                                           ("transB", 0))}  # fmt: skip
    reader.emit(node.outputs, gemm, names, kept)


def gemm(a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0,
         transA: int = 0, transB: int = 0) -> Tensor:  # noqa: N803  (ONNX's names)  # fmt: skip
    """`alpha * a @ b + beta * c`, each of the first two transposed or not."""
    product = (a.T if transA else a) @ (b.T if transB else b)
    product = product if alpha == 1 else alpha * product
    return product if c is None else product + (c if beta == 1 else beta * c)


def _matmul(reader: Reader, node: Node) -> None:
    left, right = node.inputs
    if reader.is_free(right) or not reader.is_free(left) or reader.values[right].dim() != 2:
        reader.emit(node.outputs, torch.matmul, [Value(left), Value(right)])
        return
    weight = reader.turned(right)
    out, bias = node.outputs[0], None
    after = reader.only_reader(out)
    other = [n for n in after.inputs if n != out] if after and after.kind == "Add" else []
    if after and len(other) == 1 and not reader.is_free(other[0]) and other[0] in reader.values:
        added = reader.values[other[0]]
        if added.numel() == weight.shape[0] and added.shape[-1:] == weight.shape[:1]:
            out, bias = after.outputs[0], added.reshape(-1).contiguous()
            reader.done.add(out)
            right = right if right.endswith(".weight") else other[0]
    reader.emit_layer(node, right, layers.linear(weight, bias), left, out)


def _batch_norm(reader: Reader, node: Node) -> None:
    if node.get("training_mode", 0):
        raise Unreadable("it is in training mode")
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = {name: _weight(reader, node, place + 1) for place, name in enumerate(names)}
    dims = reader.value(node, 0).dim()
    kept = 1 - node.get("momentum", 0.9)
    _add(
        reader, node, node.inputs[0],
        layers.batch_norm(tensors, dims, node.get("epsilon", 1e-5), kept),
    )  # fmt: skip


def _as_group_norm(reader: Reader, node: Node) -> bool:
    """Whether it is a GroupNorm, which torch writes as reshape, this, reshape, product and sum."""
    before, after = reader.maker(node.inputs[0]), reader.only_reader(node.outputs[0])
    if not before or not after or before.kind != "Reshape" or after.kind != "Reshape":
        return False
    source = reader.values[before.inputs[0]]
    product = reader.only_reader(after.outputs[0])
    total = reader.only_reader(product.outputs[0]) if product else None
    if not product or not total or (product.kind, total.kind) != ("Mul", "Add"):
        return False
    scale, shift = (
        reader.values.get(next((n for n in one.inputs if n != last), ""))
        for one, last in ((product, after.outputs[0]), (total, product.outputs[0]))
    )
    groups, channels = reader.value(node, 0).shape[1], source.shape[1]
    plain = (_weight(reader, node, 1) == 1).all()
    if (
        scale is None or shift is None or scale.numel() != channels or shift.numel() != channels
        or reader.value(node, 0).dim() != 3 or not plain or _weight(reader, node, 2).any()
    ):  # fmt: skip
        return False
    names = {n: next(n for n in one.inputs if reader.values.get(n) is t)
             for n, one, t in (("weight", product, scale), ("bias", total, shift))}  # fmt: skip
    layer = layers.group_norm(
        groups, scale.reshape(-1), shift.reshape(-1), node.get("epsilon", 1e-5)
    )
    assert layer is not None  # noqa: S101  (it has both)
    reader.emit_layer(node, names["weight"], layer, before.inputs[0], total.outputs[0])
    reader.done |= {after.outputs[0], product.outputs[0], total.outputs[0]}
    return True


def _instance_norm(reader: Reader, node: Node) -> None:
    if _as_group_norm(reader, node):
        return
    weight = _weight(reader, node, 1)
    config = {"num_features": len(weight), "eps": node.get("epsilon", 1e-5), "affine": True}
    kinds: Mapping[int, type[nn.Module]] = {
        3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d,
    }  # fmt: skip
    kind = kinds.get(reader.value(node, 0).dim())
    tensors = {"weight": weight, "bias": _weight(reader, node, 2)}
    _add(reader, node, node.inputs[0], Layer(kind, config, tensors) if kind else None)


def _layer_norm(reader: Reader, node: Node) -> None:
    dims = reader.value(node, 0).dim()
    first = node.get("axis", -1) % dims
    shape = reader.value(node, 0).shape[first:]
    if len([o for o in node.outputs if o]) > 1:
        raise Unreadable("its mean or deviation is used too")
    eps, weight = node.get("epsilon", 1e-5), _weight(reader, node, 1)
    layer = layers.layer_norm(shape, weight, reader.fixed(node, 2), eps)
    _add(reader, node, node.inputs[0], layer if weight.shape == shape else None)


def _group_norm(reader: Reader, node: Node) -> None:
    groups, weight, bias = node.get("num_groups"), _weight(reader, node, 1), reader.fixed(node, 2)
    channels = reader.value(node, 0).shape[1]
    if bias is not None and len(weight) == groups != channels:  # before opset 21
        weight, bias = (t.repeat_interleave(channels // groups) for t in (weight, bias))
    layer = layers.group_norm(groups, weight, bias, node.get("epsilon", 1e-5))
    _add(reader, node, node.inputs[0], layer)


def _prelu(reader: Reader, node: Node) -> None:
    slope = _weight(reader, node, 1)
    dims = reader.value(node, 0).dim()
    whole = (1,) * (dims - slope.dim()) + tuple(slope.shape)
    if slope.numel() not in (1, whole[1]):
        raise Unreadable("its slopes are not one for each channel")
    _add(reader, node, node.inputs[0], layers.prelu(slope.reshape(-1)))


LAYERS: Mapping[str, Callable[[Reader, Node], None]] = {
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "PRelu": _prelu,
}
