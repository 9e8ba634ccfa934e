"""Refits a pruned network in sequence, on its own activations, to answer like the original.

Every convolution and linear layer after the first cut is solved again by ridge least squares: its
inputs are what the pruned network really feeds it, its targets are what the original computes
there. Where its output enters a sum (a residual connection), the target also makes up for what
the other addend has drifted by. No labels, no gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.capture import Pair, Seen
from compressor.consumers import rest
from compressor.counting import evaluating
from compressor.data import Batches, Inputs, device_of, on, split
from compressor.least_squares import ridged
from compressor.moments import Moments
from compressor.patches import (
    as_matrix,
    channel_dim,
    from_matrix,
    input_dim,
    matrix_shape,
    refittable,
)
from compressor.progress import Event, Progress, silent
from compressor.replay import Replay, trace_calls
from compressor.space import Architecture, SearchSpace
from compressor.tracing import Fate, trace_fates

_SMALLEST_SLOPE = 1e-2  # of a BatchNorm channel through which drift is still sent back


def refit(
    model: nn.Module,
    small: nn.Module,
    space: SearchSpace,
    architecture: Architecture,
    example: Inputs,
    calibration: Batches,
    progress: Progress = silent,
) -> None:
    """Refits all of `small` in place, as `Refitter.whole` does."""
    Refitter(model, space, example, calibration).whole(small, architecture, progress)


class Refitter:
    """Refits pruned networks of one original, in sequence and in place."""

    def __init__(
        self,
        model: nn.Module,
        space: SearchSpace,
        example: Inputs,
        calibration: Batches,
        *,
        remember: bool = False,
    ) -> None:
        """Traces the original.

        Args:
            model: the original network; not touched.
            space: its search space.
            example: inputs `[N, …]`.
            calibration: batches; read once for each refitted layer.
            remember: whether what the original answers is kept in memory for the next network,
                instead of being computed again. For few images.
        """
        self._model = model
        self._space = space
        self._calibration = calibration
        self._fates = trace_fates(model, example)
        self._calls = trace_calls(model, example)
        # Replay makes modules answer from memory, which the caller's network must not do.
        self._original = Replay(copy.deepcopy(model), self._calls)
        self._seen: dict[tuple[str, int], Seen] | None = {} if remember else None

    def whole(
        self, small: nn.Module, architecture: Architecture, progress: Progress = silent
    ) -> None:
        """Refits every layer from the first one that lost inputs.

        Args:
            small: the network of `architecture`, as materialised or from the library.
            architecture: what was cut.
            progress: told after each layer.
        """
        cut = self._cut(architecture)
        names = [n for n in self._fates if self._can(n)]
        first = next((i for i, n in enumerate(names) if n in cut), len(names))
        self._solve(small, architecture, names[first:], progress)

    def consumers(self, small: nn.Module, architecture: Architecture) -> tuple[str, ...]:
        """Refits only the layers that lost inputs; returns the modules that were changed.

        Far cheaper than `whole`, and enough to tell which of two architectures is better.
        """
        cut = self._cut(architecture)
        names = [n for n in self._fates if n in cut and self._can(n)]
        self._solve(small, architecture, names, silent)
        norms = [norm for n in names if (norm := self._fates[n].norm) is not None]
        return (*names, *norms)

    def _solve(
        self,
        small: nn.Module,
        architecture: Architecture,
        names: Sequence[str],
        progress: Progress,
    ) -> None:
        removed = self._space.removed(architecture)
        pair = Pair(self._original, Replay(small, self._calls), self._calls, self._seen)
        self._original.keep(())
        with evaluating(self._original.model), evaluating(small), torch.no_grad():
            for i, name in enumerate(names):
                module = self._model.get_submodule(name)
                dim = 1 - input_dim(module)
                gone = removed.get((f"{name}.weight", dim), set())
                rows = rest(cast(Tensor, module.weight).shape[dim], gone)
                step = _Step(pair, name, self._fates[name], rows.to(device_of(small)))
                step.solve(self._calibration)
                progress(Event("refit", i + 1, len(names), name))

    def _can(self, name: str) -> bool:
        return self._fates[name].calls == 1 and not refittable(self._model.get_submodule(name))

    def _cut(self, architecture: Architecture) -> set[str]:
        """Modules that lose inputs or a part of their kernel."""
        cut = {tensor.rpartition(".")[0] for tensor in self._space.kernels(architecture)}
        for tensor, dim in self._space.removed(architecture):
            name, _, leaf = tensor.rpartition(".")
            known = leaf == "weight" and name in self._fates
            if known and dim == input_dim(self._model.get_submodule(name)):
                cut.add(name)
        return cut


@dataclass(frozen=True)
class _Step:
    """One module: where its inputs and targets come from."""

    pair: Pair
    name: str
    fate: Fate
    rows: Tensor

    def solve(self, calibration: Batches) -> None:
        """Solves for the weight and the constant, and installs both."""
        small = self.pair.small.model
        self._reset_norm()
        module = small.get_submodule(self.name)
        start = as_matrix(module, cast(Tensor, module.weight))
        bias = cast("Tensor | None", module.bias)
        groups, rows, size = matrix_shape(module)
        moments = Moments(groups, size, rows)
        for number, batch in enumerate(calibration):
            inputs = on(device_of(small), split(batch)[0])
            was = self.pair.was(number, inputs, self.name, self.fate)
            now = self.pair.now(number, inputs, self.name, self.fate)
            moments.observe(module, now.x, self._target(module, was, now))
        constant = bias is not None or self.fate.norm is not None
        weight, shift = solved(moments, start.cpu(), constant=constant)
        if bias is not None:
            shift = shift.flatten() - bias.double().cpu()
        norm = None if bias is not None else self.fate.norm
        modules = dict(small.named_modules(remove_duplicate=False))
        _install(modules, self.name, weight, shift if constant else None, norm)

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
        if was.other is None or now.other is None:
            return y
        other = was.other
        if other.shape != now.other.shape:
            other = other.index_select(channels, self.rows)
        return y + (other - now.other) / self._slope(y, channels)

    def _slope(self, y: Tensor, channels: int) -> Tensor:
        """How much the sum moves when the module's output does, for each channel."""
        shape = [1] * y.dim()
        if self.fate.norm is None:
            return torch.ones(shape, device=y.device)
        norm = cast(_BatchNorm, self.pair.small.model.get_submodule(self.fate.norm))
        assert norm.running_var is not None  # noqa: S101  (recalibrated like the original's)
        slope = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        sign = torch.where(slope < 0, -1.0, 1.0)
        shape[channels] = -1
        return (sign * slope.abs().clamp_min(_SMALLEST_SLOPE)).reshape(shape)


def _install(
    modules: Mapping[str, nn.Module],
    name: str,
    weight: Tensor,
    constant: Tensor | None,
    norm: str | None,
) -> None:
    """Puts a refitted weight into a module, and the constant after it.

    Args:
        modules: path to module.
        name: path of the module.
        weight: new weight as a matrix, `[O, D]` or `[G, O / G, D]`.
        constant: to be added to each output, or None.
        norm: path of the BatchNorm that takes the constant up; None where the bias does.
    """
    module = modules[name]
    with torch.no_grad():
        target = cast(Tensor, module.weight)
        target.copy_(from_matrix(module, weight))
        if constant is None:
            return
        if norm is None:
            cast(Tensor, module.bias).add_(constant.flatten().to(target))
            return
        mean = cast("Tensor | None", modules[norm].running_mean)
        if mean is not None:  # statistics of the batch itself take any constant away
            mean.sub_(constant.flatten().to(target))


def solved(moments: Moments, start: Tensor, *, constant: bool) -> tuple[Tensor, Tensor]:
    """Ridge least squares that shrinks towards `start` `[G, O / G, D]`; weight and constant."""
    second = moments.second(centred=constant)
    system = ridged(second.clone(), moments.mean)
    wanted = moments.cross(centred=constant) + (system - second) @ start.double().mT
    weight = torch.linalg.solve(system, wanted).mT
    return weight, moments.target - (weight @ moments.mean[:, :, None]).flatten(1)
