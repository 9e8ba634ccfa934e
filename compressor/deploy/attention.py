"""Attention over more than one batch dimension, in a form that the exporter knows."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_DIMS = 4  # batch, heads, tokens, channels


class FourDimensional(TorchFunctionMode):
    """Merges the leading dimensions of `scaled_dot_product_attention` into one, where it has more.

    torch computes attention of any number of dimensions; its ONNX exporter knows four.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = args[:3]
        if (
            func is not functional.scaled_dot_product_attention
            or len(args) != 3
            or kwargs.get("attn_mask") is not None
            or not all(isinstance(t, Tensor) and t.dim() > _DIMS for t in inputs)
            or any(t.shape[:-2] != inputs[0].shape[:-2] for t in inputs)
        ):
            return func(*args, **kwargs)
        out = func(*(t.flatten(0, -_DIMS) for t in inputs), **kwargs)
        return out.reshape(*inputs[0].shape[:-1], out.shape[-1])
