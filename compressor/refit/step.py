"""One module of a pruned network, solved again to answer like the original's.

Ridge least squares on what the pruned network feeds it. The targets are what the original
computes there, changed by what is known of the way ahead: what the other addend of a sum has
drifted by, and what a clip takes away in both networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.network.data import Batches, Inputs, device_of, on, split
from compressor.network.patches import as_matrix, channel_dim, from_matrix, matrix_shape
from compressor.network.tracing import Fate
from compressor.refit.capture import Pair, Seen
from compressor.refit.folds import FOLDS, Folds
from compressor.refit.relevance import Relevance

# Patches of a batch that are enough, in all and for each input: neighbours tell nearly the same.
_ROUGHLY, _FINALLY = (1 << 11, 14), (1 << 15, 40)
_ROUNDS = 3  # in which targets are set anew where a clip follows
_SMALLEST_SLOPE = 1e-2  # of a BatchNorm channel through which drift is still sent back


@dataclass(frozen=True)
class Step:
    """One module: where its inputs and targets come from.

    Attributes:
        pair: the two networks.
        name: path of the module.
        fate: what its output goes into.
        rows: outputs that the pruned network keeps.
        roughly: whether it is enough to tell candidates apart.
        relevance: weights of the positions, or None where all count alike.
    """

    pair: Pair
    name: str
    fate: Fate
    rows: Tensor
    roughly: bool
    relevance: Relevance | None

    def solve(self, calibration: Batches) -> None:
        """Solves for the weight and the constant, and installs both.

        Where a clip follows, the targets are then set anew a few times, unless it is done
        roughly: what both networks clip need not be equal.
        """
        self._reset_norm()
        module = self.pair.small.model.get_submodule(self.name)
        start = as_matrix(module, cast(Tensor, module.weight)).cpu()
        groups, rows, size = matrix_shape(module)
        moments = Folds(groups, size, rows, 1 if self.roughly else FOLDS)
        for number, inputs in self._inputs(calibration):
            was, now = self._seen(number, inputs)
            every = self._every(now.y, size)
            weights = self._weights(number, every)
            moments.observe(module, now.x, self._target(module, was, now), every, weights)
        constant = module.bias is not None or self.fate.norm is not None
        start, shift = self._put(*moments.solved(start, constant=constant))
        if self.roughly or self.fate.clip is None or not constant or not self._fixed():
            return
        for _ in range(_ROUNDS):
            again = moments.retargeted()
            for number, inputs in self._inputs(calibration):
                was, now = self._seen(number, inputs)
                target = self._clipped(module, was, now, shift)
                every = self._every(now.y, size)
                again.observe(module, now.x, target, every, self._weights(number, every))
            self._reset_norm()
            start, shift = self._put(*again.solved(start, constant=True))

    def _weights(self, batch: int, every: int) -> Tensor | None:
        return None if self.relevance is None else self.relevance.of(self.name, batch, every)

    def _every(self, y: Tensor, size: int) -> int:
        """Along each spatial dimension every so many positions of a batch are enough."""
        if isinstance(self.pair.small.model.get_submodule(self.name), nn.Linear):
            return 1
        fewest, each = _ROUGHLY if self.roughly else _FINALLY
        spatial = max(1, y.dim() - 2)
        positions = y.shape[0] * y.shape[2:].numel()
        return max(1, int((positions / max(fewest, each * size)) ** (1 / spatial)))

    def _inputs(self, calibration: Batches) -> Iterator[tuple[int, Inputs]]:
        device = device_of(self.pair.small.model)
        for number, batch in enumerate(calibration):
            yield number, on(device, split(batch)[0])

    def _seen(self, number: int, inputs: Inputs) -> tuple[Seen, Seen]:
        was = self.pair.was(number, inputs, self.name)
        return was, self.pair.now(number, inputs, self.name, self.fate)

    def _put(self, weight: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Installs weight and constant; returns it, and what the module does not add, `[O]`."""
        small = self.pair.small.model
        bias = cast("Tensor | None", small.get_submodule(self.name).bias)
        outside = shift.flatten()
        if bias is not None:
            bias.copy_(outside.to(bias))
            outside = torch.zeros_like(outside)
        module = small.get_submodule(self.name)
        cast(Tensor, module.weight).copy_(from_matrix(module, weight))
        if bias is None and self.fate.norm is not None:
            mean = cast("Tensor | None", small.get_submodule(self.fate.norm).running_mean)
            if mean is not None:  # statistics of the batch itself take any constant away
                mean.sub_(outside.to(mean))
        return weight, outside

    def _clipped(self, module: nn.Module, was: Seen, now: Seen, shift: Tensor) -> Tensor:
        """Targets that leave alone what both networks clip on the same side.

        Zhang et al., arXiv 1505.06798, section 3.2, take the nonlinearity into account likewise.
        """
        assert self.fate.clip is not None  # noqa: S101  (the caller asked)
        low, high = self.fate.clip
        channels = channel_dim(module, was.y)
        y = was.y.index_select(channels, self.rows)
        shape = [1] * y.dim()
        shape[channels] = -1
        answer = now.y + shift.to(now.y).reshape(shape)
        slope, offset = self._slope(y, channels), self._offset(y, channels)
        wanted, got = slope * y + offset, slope * answer + offset
        both = ((wanted <= low) & (got <= low)) | ((wanted >= high) & (got >= high))
        return torch.where(both, answer, (wanted.clamp(low, high) - offset) / slope)

    def _offset(self, y: Tensor, channels: int) -> Tensor:
        """What the original's BatchNorm gives for an output of 0, by the slope of `_slope`."""
        shape = [1] * y.dim()
        if self.fate.norm is None:
            return torch.zeros(shape, device=y.device)
        shape[channels] = -1
        norm = cast(_BatchNorm, self.pair.original.model.get_submodule(self.fate.norm))
        assert norm.running_mean is not None  # noqa: S101  (as `_fixed` says)
        mean, bias = norm.running_mean[self.rows], norm.bias[self.rows]
        return bias.reshape(shape) - self._slope(y, channels) * mean.reshape(shape)

    def _reset_norm(self) -> None:
        """Targets are the original's outputs, so they are normalised as the original's were."""
        if self.fate.norm is None:
            return
        now = cast(_BatchNorm, self.pair.small.model.get_submodule(self.fate.norm))
        was = cast(_BatchNorm, self.pair.original.model.get_submodule(self.fate.norm))
        for mine, theirs in (
            (now.running_mean, was.running_mean),
            (now.running_var, was.running_var),
        ):
            if mine is not None and theirs is not None:
                mine.copy_(theirs[self.rows])

    def _target(self, module: nn.Module, was: Seen, now: Seen) -> Tensor:
        """What the pruned module should answer."""
        channels = channel_dim(module, was.y)
        y = was.y.index_select(channels, self.rows)
        if was.other is None or now.other is None or not self._fixed():
            return y
        other = was.other
        if other.shape != now.other.shape:
            other = other.index_select(channels, self.rows)
        return y + (other - now.other) / self._slope(y, channels)

    def _fixed(self) -> bool:
        """Whether what follows is the same for every batch: no statistics of the batch itself."""
        norm = self.fate.norm
        return norm is None or self.pair.small.model.get_submodule(norm).running_var is not None

    def _slope(self, y: Tensor, channels: int) -> Tensor:
        """How much the sum moves when the module's output does, for each channel."""
        shape = [1] * y.dim()
        if self.fate.norm is None:
            return torch.ones(shape, device=y.device)
        norm = cast(_BatchNorm, self.pair.small.model.get_submodule(self.fate.norm))
        assert norm.running_var is not None  # noqa: S101  (as `_fixed` says)
        slope = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        sign = torch.where(slope < 0, -1.0, 1.0)
        shape[channels] = -1
        return (sign * slope.abs().clamp_min(_SMALLEST_SLOPE)).reshape(shape)
