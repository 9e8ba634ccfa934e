"""Weights that read channels of search layers: which there are, and what is known of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from compressor.coupling import Coupling, Role
from compressor.errors import DataError
from compressor.network.data import Batches, Inputs
from compressor.network.patches import as_matrix, input_dim, refittable
from compressor.network.tracing import Fate, trace_fates
from compressor.refit.least_squares import restricted, ridged
from compressor.refit.moments import Moments, collect
from compressor.space import Frozen, SearchSpace


@dataclass(frozen=True)
class Consumer:
    """A weight that can be refitted when some of its inputs are gone.

    Attributes:
        name: path of its module.
        system: what is solved, with its ridge, `[G, D, D]`, float64.
        mean: mean of its inputs `[G, D]`, or None where no constant can follow.
        square: mean square of its inputs `[G, D]`.
        weight: original weight as `[G, O / G, D]`.
        window: spatial shape of a patch, `(k, …)`; empty for a linear layer.
        input_dim: the dimension of its weight tensor that shrinks with the inputs.
        norm: path of the BatchNorm whose mean takes up the constant; None where the bias does.
    """

    name: str
    system: Tensor
    mean: Tensor | None
    square: Tensor
    weight: Tensor
    window: tuple[int, ...]
    input_dim: int
    norm: str | None

    @property
    def area(self) -> int:
        """Inputs of a patch that one channel takes."""
        return int(torch.Size(self.window).numel())

    @property
    def channels(self) -> int:
        """Channels that one group reads."""
        return self.weight.shape[2] // self.area

    def kept(self, gone: frozenset[int], kernel: int | None) -> Tensor:
        """Indices of a patch that are still read, ascending, the same in every group.

        Args:
            gone: channels of a group that are cut.
            kernel: edge of the cropped kernel, or None.
        """
        index = torch.arange(self.weight.shape[2]).reshape(self.channels, *self.window)
        index = index[rest(self.channels, gone)]
        for axis, edge in enumerate(self.window if kernel else ()):
            index = index.narrow(axis + 1, (edge - int(kernel or edge)) // 2, int(kernel or edge))
        return index.flatten()

    def places(self, coupling: Coupling, units: int) -> Tensor:
        """Indices of a patch that belong to each unit, `[units, p]`."""
        channels = [coupling.index.positions([unit]) for unit in range(units)]
        base = torch.tensor(channels)[:, :, None] * self.area + torch.arange(self.area)
        return base.flatten(1)

    def refitted(self, kept: Tensor) -> Fit:
        """The best weight on the kept inputs."""
        weight = restricted(self.system, self.weight, kept)
        rows = self.system[:, kept][:, :, kept]
        share = _variance(weight, rows) / _variance(self.weight.double(), self.system)
        constant = None
        if self.mean is not None:
            full, now = self.mean[:, :, None], self.mean[:, kept, None]
            constant = (self.weight.double() @ full - weight @ now).flatten()
        return Fit(weight.flatten(0, 1), constant, share.flatten())


@dataclass(frozen=True)
class Fit:
    """A consumer's weight on some of its inputs.

    Attributes:
        weight: `[O, D']`.
        constant: to be added to each output `[O]`, or None where nothing can take it up.
        share: variance of each output as a share of the original's, `[O]`; below 1, since what
            the kept inputs cannot tell is missing.
    """

    weight: Tensor
    constant: Tensor | None
    share: Tensor


def _variance(weight: Tensor, system: Tensor) -> Tensor:
    return ((weight @ system) * weight).sum(2).clamp_min(1e-30)


def rest(size: int, gone: frozenset[int] | set[int]) -> Tensor:
    """Indices below `size` that are not gone, ascending."""
    return torch.tensor([i for i in range(size) if i not in gone], dtype=torch.long)


def consumer_names(space: SearchSpace) -> list[str]:
    """Modules whose weights lose inputs or kernel elements by some choice."""
    found: dict[str, None] = {}
    for layer in space.layers:
        for coupling in layer.group.couplings if layer.group else ():
            if coupling.role is Role.CONSUMED:
                found[coupling.tensor.rpartition(".")[0]] = None
        if layer.kernel:
            found[layer.kernel.tensor.rpartition(".")[0]] = None
    return list(found)


def sorted_out(
    model: nn.Module, space: SearchSpace, fates: Mapping[str, Fate]
) -> tuple[list[str], tuple[Frozen, ...]]:
    """Consumers that can be refitted, and those that are only sliced, with the reason."""
    names, sliced = [], []
    for name in consumer_names(space):
        why = refittable(model.get_submodule(name))
        if not why and name not in fates:
            why = "its weight is used otherwise than by calling the module with one input"
        if why:
            sliced.append(Frozen(name, why))
        else:
            names.append(name)
    return names, tuple(sliced)


def only_sliced(model: nn.Module, space: SearchSpace, example: Inputs) -> tuple[Frozen, ...]:
    """Consumers whose weights can only be sliced, with the reason; needs no calibration data."""
    return sorted_out(model, space, trace_fates(model, example))[1]


def read_consumers(
    model: nn.Module, names: list[str], fates: Mapping[str, Fate], calibration: Batches
) -> dict[str, Consumer]:
    """What the calibration data tells about each consumer.

    Raises:
        DataError: a consumer reads infinity or NaN.
    """
    moments = collect(model, names, calibration)
    # Each is dropped as soon as it is used: two matrices for each layer would be one too many.
    return {n: _consumer(model.get_submodule(n), n, moments.pop(n), fates[n]) for n in names}


def _consumer(module: nn.Module, name: str, moments: Moments, fate: Fate) -> Consumer:
    weight = cast(Tensor, module.weight)
    constant = fate.norm is not None or module.bias is not None
    second = moments.second(centred=constant)
    if not bool(torch.isfinite(second.diagonal(dim1=1, dim2=2)).all()):
        raise DataError(
            "what a layer reads on the calibration data must be finite numbers, but "
            f"{name!r} reads infinity or NaN; check the images and their normalisation, or turn "
            "refitting off"
        )
    square = second.diagonal(dim1=1, dim2=2) + (moments.mean.square() if constant else 0)
    return Consumer(
        name=name,
        system=ridged(second, moments.mean),
        mean=moments.mean if constant else None,
        square=square,
        weight=as_matrix(module, weight.detach().cpu()),
        window=tuple(weight.shape[2:]),
        input_dim=input_dim(module),
        norm=None if module.bias is not None else fate.norm,
    )
