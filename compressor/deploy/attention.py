"""Attention over fewer or more batch dimensions than two, in a form that the exporter knows."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_DIMS = 4  # batch, heads, tokens, channels


class FourDimensional(TorchFunctionMode):
    """Gives `scaled_dot_product_attention` inputs of four dimensions.

    torch computes attention of any number of dimensions; its ONNX exporter knows four. So the
    leading ones of more are merged, and fewer get one of size 1.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        inputs = args[:3]
        if (
            func is not functional.scaled_dot_product_attention
            or len(args) != 3
            or not all(isinstance(t, Tensor) for t in inputs)
            or len({t.dim() for t in inputs}) != 1
        ):
            return func(*args, **kwargs)
        mask = kwargs.get("attn_mask")
        if inputs[0].dim() == _DIMS - 1:
            if mask is not None and mask.dim() == _DIMS - 1:
                kwargs["attn_mask"] = mask.unsqueeze(1)
            return func(*(t.unsqueeze(1) for t in inputs), **kwargs).squeeze(1)
        alike = all(t.shape[:-2] == inputs[0].shape[:-2] for t in inputs)
        if inputs[0].dim() <= _DIMS or mask is not None or not alike:
            return func(*args, **kwargs)
        out = func(*(t.flatten(0, -_DIMS) for t in inputs), **kwargs)
        return out.reshape(*inputs[0].shape[:-1], out.shape[-1])
