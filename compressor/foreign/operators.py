"""Calls of an exported program's operators: those with weights as modules, others as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compressor.foreign import layers
from compressor.foreign.builder import Builder
from compressor.foreign.layers import Layer
from compressor.foreign.steps import Held, Value

# As code calls them, so that what watches code sees them too: `compressor.network.sized`.
_AS_CODE: Mapping[str, Callable[..., Any]] = {
    "view": Tensor.reshape,  # what lies in memory as told at one batch size need not at another
    "_unsafe_view": Tensor.reshape,
    "reshape": Tensor.reshape,
    "expand": Tensor.expand,
    "unflatten": Tensor.unflatten,
    "group_norm": functional.group_norm,
    "scaled_dot_product_attention": functional.scaled_dot_product_attention,
}
_SPLITS = {"split", "split_with_sizes"}
_TURNS = {"permute", "t", "transpose"}
_SOURCES = {"addmm": "mat1", "embedding": "indices"}  # others read their first argument
_LIKE_INPUT = {
    "dropout",
    "dropout_",
    "alpha_dropout",
    "feature_dropout",
    "alias",
    "lift_fresh_copy",
}


def add_call(
    builder: Builder,
    call: Callable[..., Any],
    placed: Sequence[tuple[str, Any]],
    keyed: Mapping[str, Any],
    outs: tuple[Sequence[str], bool],
    dims: Mapping[str, int],
) -> None:
    """Adds what an operator does.

    Args:
        builder: takes it.
        call: the operator.
        placed: its arguments by place, with their names.
        keyed: its arguments by name.
        outs: names of what it gives, and whether that is several.
        dims: number of dimensions of the program's tensors.
    """
    packet = getattr(getattr(call, "overloadpacket", None), "__name__", "")
    given = dict(placed) | dict(keyed)
    if not given and packet:
        raise ValueError(f"{packet} reads nothing")
    names, several = outs
    args = [value for _, value in placed]
    if packet in _LAYERS and _as_layer(builder, packet, given, names, dims):
        return
    if packet in _TURNS and _turned(builder, given):
        builder.turned[names[0]] = given["self"].name
    if packet in _LIKE_INPUT:
        builder.call(names, _same, args[:1])
    elif packet in _SPLITS:
        builder.call(names, torch.split, [*args, *keyed.values()], several=True)
    else:
        kept = {} if packet == "group_norm" else dict(keyed)
        if packet == "group_norm":
            args = [given.get(n) for n in ("input", "num_groups", "weight", "bias")]
            kept = {"eps": given.get("eps", 1e-5)}
        if packet != "view" or isinstance(args[1], list):  # not `view.dtype`
            call = _AS_CODE.get(packet, call)
        builder.call(names, call, args, kept, several=several)


def _same(x: Tensor) -> Tensor:
    return x


def _as_layer(
    builder: Builder,
    packet: str,
    given: Mapping[str, Any],
    names: Sequence[str],
    dims: Mapping[str, int],
) -> bool:
    """Whether a call became the call of a module whose tensors bear the module's name."""
    source = given[_SOURCES.get(packet, next(iter(given)))]
    held = {n: v.name for n, v in given.items() if isinstance(v, Held)}
    if packet in ("addmm", "mm"):
        matrix = given["mat2"]
        turned = builder.turned.get(matrix.name) if isinstance(matrix, Value) else None
        if turned is None or not (packet == "mm" or "self" in held) or _scaled(given):
            return False
        held["mat2"] = turned
    weight = held.get("weight") or held.get("mat2") or ""
    path, _, leaf = weight.rpartition(".")
    if not path or leaf != "weight" or any(n.rpartition(".")[0] != path for n in held.values()):
        return False
    tensors = {n.rpartition(".")[2]: builder.tensors[n] for n in held.values()}
    width = dims.get(source.name, 0) if isinstance(source, Value) else 0
    layer = _LAYERS[packet](given, tensors, width)
    if layer is None or set(layer.tensors) != set(tensors) or not builder.layer(path, layer):
        return False
    builder.call(names[:1], path, [source])
    return True


def _turned(builder: Builder, given: Mapping[str, Any]) -> bool:
    """Whether a matrix that the file holds is transposed."""
    source = given.get("self")
    if not isinstance(source, Held) or builder.tensors[source.name].dim() != 2:
        return False
    if "dims" in given:
        return bool([d % 2 for d in given["dims"]] == [1, 0])
    return bool((given.get("dim0", 0) - given.get("dim1", 1)) % 2)


def _scaled(given: Mapping[str, Any]) -> bool:
    return bool(given.get("alpha", 1) != 1 or given.get("beta", 1) != 1)


def _convolution(given: Mapping[str, Any], tensors: Mapping[str, Tensor], _: int) -> Layer | None:
    return layers.convolution(
        tensors["weight"],
        tensors.get("bias"),
        stride=given.get("stride", [1]),
        padding=given.get("padding", [0]),
        dilation=given.get("dilation", [1]),
        groups=given.get("groups", 1),
        transposed=given.get("transposed", False),
        output_padding=given.get("output_padding", [0]),
    )


def _transposed(given: Mapping[str, Any], tensors: Mapping[str, Tensor], _: int) -> Layer | None:
    return _convolution({**given, "transposed": True}, tensors, 0)


def _linear(_: Mapping[str, Any], tensors: Mapping[str, Tensor], __: int) -> Layer | None:
    return layers.linear(tensors["weight"], tensors.get("bias"))


def _batch_norm(given: Mapping[str, Any], tensors: Mapping[str, Tensor], dims: int) -> Layer | None:
    return layers.batch_norm(tensors, dims, given["eps"], given["momentum"])


def _layer_norm(given: Mapping[str, Any], tensors: Mapping[str, Tensor], _: int) -> Layer | None:
    eps = given.get("eps", 1e-5)
    shape = given["normalized_shape"]
    return layers.layer_norm(shape, tensors.get("weight"), tensors.get("bias"), eps)


def _group_norm(given: Mapping[str, Any], tensors: Mapping[str, Tensor], _: int) -> Layer | None:
    groups = given["num_groups"] if "num_groups" in given else given["group"]
    eps = given.get("eps", 1e-5)
    return layers.group_norm(groups, tensors.get("weight"), tensors.get("bias"), eps)


def _embedding(_: Mapping[str, Any], tensors: Mapping[str, Tensor], __: int) -> Layer | None:
    return layers.embedding(tensors["weight"])


def _prelu(_: Mapping[str, Any], tensors: Mapping[str, Tensor], __: int) -> Layer | None:
    return layers.prelu(tensors["weight"])


_LAYERS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Tensor], int], Layer | None]] = {
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "convolution": _convolution,
    "conv_transpose1d": _transposed,
    "conv_transpose2d": _transposed,
    "conv_transpose3d": _transposed,
    "linear": _linear,
    "addmm": _linear,
    "mm": _linear,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "layer_norm": _layer_norm,
    "native_layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "native_group_norm": _group_norm,
    "embedding": _embedding,
    "prelu": _prelu,
}
