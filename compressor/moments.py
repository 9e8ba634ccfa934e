"""Second moments of what each consumer reads: all that least squares needs to know.

A *patch* is what one output position of a convolution or linear layer reads: `in * k * k` numbers.
The moments of all patches of the calibration data are accumulated batch by batch, so memory is
bounded by layer width and not by the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compressor.counting import evaluating, forward
from compressor.data import Batches, device_of, on, split

LARGEST_PATCH = 6000  # a moment matrix of so many numbers squared takes 144 MB


class Moments:
    """Sums over patches `x` and outputs `y`, in float64.

    Attributes:
        count: patches added.
        xx: sum of x xᵀ, `[D, D]`.
        x: sum of x, `[D]`.
        xy: sum of x yᵀ, `[D, O]`; O is 0 where there is no target.
        y: sum of y, `[O]`.
    """

    def __init__(self, inputs: int, outputs: int = 0) -> None:
        self.count = 0
        self.xx = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.x = torch.zeros(inputs, dtype=torch.float64)
        self.xy = torch.zeros(inputs, outputs, dtype=torch.float64)
        self.y = torch.zeros(outputs, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Adds patches `[n, D]` and their targets `[n, O]`."""
        self.count += x.shape[0]
        self.xx += (x.T @ x).double().cpu()
        self.x += x.sum(0).double().cpu()
        if y is not None:
            self.xy += (x.T @ y).double().cpu()
            self.y += y.sum(0).double().cpu()


def refittable(module: nn.Module) -> str:
    """Why the weight of a module cannot be refitted by least squares; empty if it can be."""
    if isinstance(module, nn.Linear):
        size = module.in_features
    elif isinstance(module, nn.Conv2d) and module.groups == 1:
        size = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
        if module.padding_mode != "zeros":
            return f"its padding mode is {module.padding_mode}"
    elif isinstance(module, _ConvNd | _ConvTransposeNd):
        return "only plain two-dimensional convolutions are refitted"
    else:
        return f"a {type(module).__name__} is not refitted"
    if size > LARGEST_PATCH:
        return f"it reads {size} numbers at once, more than {LARGEST_PATCH}"
    return ""


def patches(module: nn.Module, x: Tensor) -> Tensor:
    """Everything that the module reads, `[positions, D]`, D in the order of its weight."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    assert isinstance(module, nn.Conv2d)  # noqa: S101  (callers ask `refittable` first)
    if module.kernel_size == (1, 1) and module.padding in ((0, 0), "valid", "same"):
        s, t = module.stride
        return x[:, :, ::s, ::t].permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    pad = module._reversed_padding_repeated_twice
    padded = functional.pad(x, pad)
    columns = functional.unfold(padded, module.kernel_size, module.dilation, 0, module.stride)
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])


def outputs(module: nn.Module, y: Tensor) -> Tensor:
    """Outputs of the module as `[positions, O]`, in the order of `patches`."""
    if isinstance(module, nn.Linear):
        return y.reshape(-1, y.shape[-1])
    return y.permute(0, 2, 3, 1).reshape(-1, y.shape[1])


def collect(model: nn.Module, names: Iterable[str], calibration: Batches) -> dict[str, Moments]:
    """Moments of the inputs of the named modules, over all calibration batches."""
    modules: Mapping[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    found = {n: Moments(cast(Tensor, modules[n].weight).flatten(1).shape[1]) for n in names}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[name].add(patches(module, args[0].detach()))

        return modules[name].register_forward_pre_hook(hook)

    handles = [watch(name) for name in found]
    try:
        with evaluating(model), torch.no_grad():
            for batch in calibration:
                forward(model, on(device_of(model), split(batch)[0]))
    finally:
        for handle in handles:
            handle.remove()
    return found
