"""Second moments of what each consumer reads: all that least squares needs to know.

The moments of all patches of the calibration data are accumulated some images at a time, so
memory is bounded by layer width and not by the number of images.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressor.network.counting import evaluating, forward
from compressor.network.data import Batches, device_of, on, split
from compressor.network.patches import matrix_shape, outputs, patch_numbers, patches

_AT_ONCE = 1 << 24  # numbers in the patches that are multiplied at once: 64 MB
_SPLIT = 64  # rows of a matrix times itself that are computed at once, from the diagonal on


class Moments:
    """First and second moments of patches `x` and outputs `y` of each group, in float64.

    Sums are taken of `x` less its mean in the first patches that were added: where a mean is much
    larger than the spread around it, float32 products could not tell the spread any more.

    Attributes:
        count: patches added, the same for every group; their weights where they have some.
    """

    def __init__(self, groups: int, inputs: int, outputs: int = 0) -> None:
        self.count: float = 0
        self._shift: Tensor | None = None
        self._xx = torch.zeros(groups, inputs, inputs, dtype=torch.float64)
        self._x = torch.zeros(groups, inputs, dtype=torch.float64)
        self._xy = torch.zeros(groups, inputs, outputs, dtype=torch.float64)
        self._y = torch.zeros(groups, outputs, dtype=torch.float64)
        self._targets_only = False

    def add(self, x: Tensor, y: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Adds patches `[G, n, D]`, their targets `[G, n, O / G]`, and their weights `[n]`.

        Products are taken in float32 (float64 if that is what came) and summed in float64.
        """
        x = _precise(x)
        if self._shift is None:
            self._shift = x.mean(1, keepdim=True)
        x = x - self._shift
        each = x.new_ones(()) if weights is None else weights.to(x)[:, None]
        if not self._targets_only:
            self.count += x.shape[1] if weights is None else float(weights.sum())
            _add_square(self._xx, x if weights is None else x * each.sqrt())
            self._x += (x * each).sum(1).cpu()
        if y is not None:
            y = _precise(y) * each
            self._xy += (x.mT @ y).cpu()
            self._y += y.sum(1).cpu()

    def emptied(self) -> Moments:
        """No patches yet, and the same shift, so that `merged` can join them."""
        again = copy.copy(self)
        again.count = 0
        for name in ("_xx", "_x", "_xy", "_y"):
            setattr(again, name, torch.zeros_like(getattr(self, name)))
        return again

    def retargeted(self) -> Moments:
        """The same patches without targets: what is added next gives targets alone.

        The patches must then come again, all of them and in the same order.
        """
        again = copy.copy(self)
        again._targets_only = True
        again._xy, again._y = torch.zeros_like(self._xy), torch.zeros_like(self._y)
        return again

    @property
    def mean(self) -> Tensor:
        """Mean of x, `[G, D]`."""
        found = self._x / self.count
        return found if self._shift is None else found + self._shift[:, 0].cpu()

    @property
    def target(self) -> Tensor:
        """Mean of y, `[G, O / G]`."""
        return self._y / self.count

    def second(self, *, centred: bool) -> Tensor:
        """Covariance of x, or without centring the mean of x xᵀ: `[G, D, D]`."""
        off = self._x[:, :, None] / self.count
        found = _mirrored(self._xx / self.count).baddbmm_(off, off.mT, alpha=-1)
        mean = self.mean[:, :, None]
        return found if centred else found.baddbmm_(mean, mean.mT)

    def cross(self, *, centred: bool) -> Tensor:
        """Covariance of x and y, or without centring the mean of x yᵀ: `[G, D, O / G]`."""
        off, target = self._x[:, :, None] / self.count, self.target[:, None, :]
        found = (self._xy / self.count).baddbmm_(off, target, alpha=-1)
        return found if centred else found.baddbmm_(self.mean[:, :, None], target)

    def error(self, weight: Tensor, constant: Tensor) -> float:
        """Sum of squares that are missed, less the targets' own, which no weight changes.

        Args:
            weight: `[G, O / G, D]`.
            constant: `[G, O / G]`.
        """
        if self._shift is not None:
            constant = constant + (weight @ self._shift.mT.to(weight)).squeeze(2)
        image = weight @ _mirrored(self._xx.clone()) + 2 * constant[..., None] * self._x[:, None]
        squares = (image * weight).sum() + self.count * constant.square().sum()
        return float(squares - 2 * (weight.mT * self._xy).sum() - 2 * (constant * self._y).sum())

    def observe(
        self,
        module: nn.Module,
        x: Tensor,
        y: Tensor | None = None,
        step: int = 1,
        weights: Tensor | None = None,
    ) -> None:
        """Adds what the module reads of its input `[N, …]`, and targets of its output's shape.

        Args:
            module: reads `x`.
            x: its input.
            y: targets, or None.
            step: of the positions, only every so many along each spatial dimension.
            weights: of all these positions, `[positions]`, or None.
        """
        each = max(1, patch_numbers(module, x[:1]))
        many = max(1, _AT_ONCE // each)
        for start in range(0, len(x), many):
            part = slice(start, start + many)
            target = None if y is None else outputs(module, y[part], step)
            found = patches(module, x[part], step)
            here = None
            if weights is not None:
                first = start * (len(weights) // len(x))
                here = weights[first : first + found.shape[1]]
            self.add(found, target, here)


def merged(parts: Sequence[Moments]) -> Moments:
    """All patches of several moments that stem from one by `emptied`."""
    if len(parts) == 1:
        return parts[0]
    whole = parts[0].emptied()
    whole.count = sum(part.count for part in parts)
    for part in parts:
        whole._xx += part._xx
        whole._x += part._x
        whole._xy += part._xy
        whole._y += part._y
    return whole


def collect(model: nn.Module, names: Iterable[str], calibration: Batches) -> dict[str, Moments]:
    """Moments of the inputs of the named modules, over all calibration batches."""
    modules: Mapping[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    found = {}
    for name in names:
        groups, _, size = matrix_shape(modules[name])
        found[name] = Moments(groups, size)

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[name].observe(module, args[0].detach())

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


def _add_square(total: Tensor, x: Tensor) -> None:
    """Adds xᵀ x `[G, D, D]` to the total; below its diagonal only blocks of `_SPLIT`."""
    size = x.shape[2]
    for start in range(0, size, _SPLIT):
        part = slice(start, min(start + _SPLIT, size))
        total[:, part, start:] += (x[..., part].mT @ x[..., start:]).cpu()


def _mirrored(half: Tensor) -> Tensor:
    """Fills in, in place, what `_add_square` leaves out below the diagonal."""
    for start in range(_SPLIT, half.shape[1], _SPLIT):
        part = slice(start, start + _SPLIT)
        half[:, part, :start] = half[:, :start, part].mT
    return half


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
