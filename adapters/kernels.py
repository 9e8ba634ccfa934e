"""Kernels of convolutions as choices."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compressor.space import Choice, KernelCut, SearchLayer

_SMALLEST = 3


def kernel_cut(name: str, module: nn.Module) -> KernelCut | None:
    """How a module's kernel can be cropped around its centre; None where it cannot.

    It is that of a convolution with an odd edge above 3, the same along all dimensions, whose
    padding is zeros and enough that a smaller kernel needs none below zero.
    """
    if not isinstance(module, _ConvNd) or isinstance(module, _ConvTransposeNd):
        return None
    if len(set(module.kernel_size)) != 1 or module.padding_mode != "zeros":
        return None
    edge, ring = module.kernel_size[0], (module.kernel_size[0] - _SMALLEST) // 2
    if edge <= _SMALLEST or edge % 2 == 0 or "weight" not in module._parameters:
        return None
    if not isinstance(module.padding, str) and any(
        p < ring * d for p, d in zip(module.padding, module.dilation, strict=True)
    ):
        return None
    return KernelCut(f"{name}.weight", edge, len(module.kernel_size))


def kernel_layer(key: str, name: str, cut: KernelCut) -> SearchLayer:
    """A search layer of a kernel alone."""
    choices = tuple(Choice(kernel=edge) for edge in _edges(cut))
    return SearchLayer(key, (name,), choices, kernel=cut)


def with_kernel(layer: SearchLayer, cut: KernelCut) -> SearchLayer:
    """A search layer of channels that decides a kernel as well, the cheapest pair first."""
    pairs = [(c.channels, k) for k in _edges(cut) for c in layer.choices]
    pairs.sort(key=lambda p: ((p[0] or 0) * p[1] ** cut.spatial, p[1]))
    choices = tuple(Choice(c, k) for c, k in pairs)
    return SearchLayer(layer.name, layer.modules, choices, layer.group, cut)


def _edges(cut: KernelCut) -> list[int]:
    return list(range(_SMALLEST, cut.kernel + 1, 2))
