"""What one output position of a convolution or linear layer reads, as rows of a matrix.

A *patch* holds the numbers that one output position reads: `D = in / groups * k * k` of them for
each group. Times the weight as a matrix it gives that position's outputs, whatever the kind of
layer. A linear layer, and a convolution without groups, is one group.
"""

from __future__ import annotations

from typing import TypeAlias, cast

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

LARGEST_PATCH = 6000  # a float64 moment matrix of so many numbers squared takes 288 MB

_Dense: TypeAlias = nn.Linear | _ConvNd
_PLAIN = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_COMPUTE = ("__call__", "forward", "_conv_forward", "_output_padding")


def refittable(module: nn.Module) -> str:
    """Why the weight of a module cannot be refitted by least squares; empty if it can be."""
    kind = type(module).__name__
    base = next((plain for plain in _PLAIN if isinstance(module, plain)), None)
    if base is None:
        return f"a {kind} is not refitted"
    if any(getattr(type(module), n, None) is not getattr(base, n, None) for n in _COMPUTE):
        return f"{kind} computes something of its own, not what {base.__name__} does"
    if "weight" not in module._parameters:
        return "its weight is computed from other parameters"
    groups, _, size = matrix_shape(cast(_Dense, module))
    if isinstance(module, _ConvTransposeNd) and groups not in (1, module.in_channels):
        return "the inputs of a grouped transposed convolution do not shrink group by group"
    if groups * size**2 > LARGEST_PATCH**2:
        return f"it reads {size} numbers at once, more than {LARGEST_PATCH}"
    return ""


def input_dim(module: nn.Module) -> int:
    """The dimension of the weight that shrinks with the inputs; the other of 0 and 1 is rows."""
    return 0 if isinstance(module, _ConvTransposeNd) else 1


def channel_dim(module: nn.Module, x: Tensor) -> int:
    """The dimension of an input or output of the module that counts channels."""
    return x.dim() - 1 - (len(module.kernel_size) if isinstance(module, _ConvNd) else 0)


def matrix_shape(module: nn.Module) -> tuple[int, int, int]:
    """Groups, outputs of a group, and inputs of a patch: `G, O / G, D`."""
    weight = cast(Tensor, module.weight)
    groups = module.groups if isinstance(module, _ConvNd) else 1
    rows = weight.shape[1 - input_dim(module)]
    if not isinstance(module, _ConvTransposeNd):
        rows //= groups
    return groups, rows, weight.numel() // (groups * rows)


def as_matrix(module: nn.Module, weight: Tensor) -> Tensor:
    """A weight, in the module's own layout, as `[G, O / G, D]`."""
    groups, rows, size = matrix_shape(module)
    if isinstance(module, _ConvTransposeNd):
        return weight.reshape(groups, -1, rows, *weight.shape[2:]).transpose(1, 2).flatten(2)
    return weight.reshape(groups, rows, size)


def from_matrix(module: nn.Module, matrix: Tensor) -> Tensor:
    """Inverse of `as_matrix`; leading dimensions may be flattened, `[O, D]`."""
    weight = cast(Tensor, module.weight)
    if not isinstance(module, _ConvTransposeNd):
        return matrix.reshape(weight.shape)
    groups, rows, _ = matrix_shape(module)
    split = matrix.reshape(groups, rows, -1, *weight.shape[2:])
    return split.transpose(1, 2).reshape(weight.shape)


def patches(module: nn.Module, x: Tensor, step: int = 1) -> Tensor:
    """What the module reads, `[G, positions, D]`, D in the order of `as_matrix`.

    Args:
        module: a layer for which `refittable` has no objection.
        x: its input.
        step: of the positions, only every so many along each spatial dimension.
    """
    if not isinstance(module, _ConvNd):
        return x.reshape(1, -1, x.shape[-1])
    n = len(module.kernel_size)
    windows = _windows(module, x)[(slice(None), slice(None), *(slice(None, None, step),) * n)]
    if isinstance(module, _ConvTransposeNd):
        # It is a convolution over the spread input with its kernel turned around.
        windows = windows.flip([*range(n + 2, 2 * n + 2)])
    split = _split(windows, module.groups)  # N, G, in / G, out …, k …
    order = (1, 2, *range(n + 3, 2 * n + 3), 0, *range(3, n + 3))
    # Positions last while copying: they lie side by side in memory, the elements of a patch do not.
    columns = split.permute(order).flatten(n + 2).flatten(1, n + 1)
    return columns.transpose(1, 2)


def patch_numbers(module: nn.Module, x: Tensor) -> int:
    """How many numbers `patches` would return; nothing is copied to find out."""
    return (_windows(module, x) if isinstance(module, _ConvNd) else x).numel()


def outputs(module: nn.Module, y: Tensor, step: int = 1) -> Tensor:
    """Outputs of the module as `[G, positions, O / G]`, in the order of `patches`."""
    if not isinstance(module, _ConvNd):
        return y.reshape(1, -1, y.shape[-1])
    n = len(module.kernel_size)
    some = _batched(module, y)[(slice(None), slice(None), *(slice(None, None, step),) * n)]
    split = _split(some.contiguous(), module.groups).flatten(3)  # N, G, O / G, L
    return split.permute(1, 0, 3, 2).flatten(1, 2)


def _windows(module: _ConvNd, x: Tensor) -> Tensor:
    """A view `[N, in, out …, k …]` of what each output position reads."""
    x, steps = _batched(module, x), module.stride
    if isinstance(module, _ConvTransposeNd):
        x, steps = _spread(module, x), (1,) * len(steps)
    else:
        x = _padded(module, x)
    for axis, (edge, apart) in enumerate(zip(module.kernel_size, module.dilation, strict=True)):
        x = x.unfold(axis + 2, apart * (edge - 1) + 1, steps[axis])[..., ::apart]
    return x


def _padded(module: _ConvNd, x: Tensor) -> Tensor:
    if module.padding_mode != "zeros":
        return functional.pad(x, module._reversed_padding_repeated_twice, module.padding_mode)
    if isinstance(module.padding, str):
        return functional.pad(x, module._reversed_padding_repeated_twice)
    return functional.pad(x, [p for p in reversed(module.padding) for _ in range(2)])


def _spread(module: _ConvTransposeNd, x: Tensor) -> Tensor:
    """The input with `stride - 1` zeros between its elements, padded to the output's size."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], module.stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    strided = spread
    for axis, s in enumerate(module.stride):
        strided = strided.unfold(axis + 2, 1, s)[..., 0]
    strided.copy_(x)
    pad: list[int] = []
    for axis in reversed(range(len(sizes))):
        before = module.dilation[axis] * (module.kernel_size[axis] - 1) - int(module.padding[axis])
        pad += [before, before + module.output_padding[axis]]
    return functional.pad(spread, pad)


def _split(x: Tensor, groups: int) -> Tensor:
    return x.view(x.shape[0], groups, -1, *x.shape[2:])


def _batched(module: _ConvNd, x: Tensor) -> Tensor:
    return x if x.dim() == len(module.kernel_size) + 2 else x.unsqueeze(0)
