"""Refits a pruned network in sequence, on its own activations, to answer like the original.

Every convolution and linear layer after the first cut is solved again by ridge least squares: its
inputs are what the pruned network really feeds it, its targets are what the original computes
there. Where its output enters a sum (a residual connection), the target also makes up for what
the other addend has drifted by. No labels, no gradients.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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
from compressor.replay import Calls, Replay, trace_calls
from compressor.space import Architecture, SearchSpace
from compressor.tracing import Fate, Stop, SumWatcher, trace_fates

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
    """Refits `small` in place.

    Args:
        model: the original network; not touched.
        small: the network of `architecture`, as materialised or from the library.
        space: the search space of `model`.
        architecture: what was cut.
        example: inputs `[N, …]`.
        calibration: batches; read once for each refitted layer.
        progress: told after each layer.
    """
    fates = trace_fates(model, example)
    removed = space.removed(architecture)
    names = _sequence(model, fates, space, architecture)
    calls = trace_calls(model, example)
    # Replay makes modules answer from memory, which the caller's network must not do.
    original = copy.deepcopy(model)
    pair = _Pair(Replay(original, calls), Replay(small, calls), calls)
    with evaluating(original), evaluating(small), torch.no_grad():
        for i, name in enumerate(names):
            module = model.get_submodule(name)
            weight = cast(Tensor, module.weight)
            dim = 1 - input_dim(module)
            gone = removed.get((f"{name}.weight", dim), set())
            kept = [row for row in range(weight.shape[dim]) if row not in gone]
            rows = torch.tensor(kept, device=weight.device)
            _Step(pair, name, fates[name], rows).solve(calibration)
            progress(Event("refit", i + 1, len(names), name))


def _sequence(
    model: nn.Module, fates: Mapping[str, Fate], space: SearchSpace, architecture: Architecture
) -> list[str]:
    """Refittable modules in forward order, from the first one whose inputs were cut."""
    cut = {tensor.rpartition(".")[0] for tensor in space.kernels(architecture)}
    for tensor, dim in space.removed(architecture):
        name, _, leaf = tensor.rpartition(".")
        if leaf == "weight" and name in fates and dim == input_dim(model.get_submodule(name)):
            cut.add(name)
    started = False
    names: list[str] = []
    for name in fates:  # in the order of execution
        started = started or name in cut
        once = fates[name].calls == 1
        if started and once and not refittable(model.get_submodule(name)):
            names.append(name)
    return names


@dataclass(frozen=True)
class _Pair:
    """The original and the pruned network, each run from where it is still to be refitted."""

    original: Replay
    small: Replay
    calls: Calls

    def sample(self, number: int, inputs: Inputs, name: str, fate: Fate) -> tuple[_Seen, _Seen]:
        """What a module of the original and that of the pruned network saw, for one batch."""
        done = self.calls.before(name)
        was, now = (
            _capture(replay.model, name, fate, partial(replay.run, number, inputs, done))
            for replay in (self.original, self.small)
        )
        return was, now


@dataclass(frozen=True)
class _Seen:
    """Input and output of a module, and what a sum adds to the output."""

    x: Tensor
    y: Tensor
    other: Tensor | None


@dataclass(frozen=True)
class _Step:
    """One module: where its inputs and targets come from."""

    pair: _Pair
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
            was, now = self.pair.sample(number, inputs, self.name, self.fate)
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

    def _target(self, module: nn.Module, was: _Seen, now: _Seen) -> Tensor:
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


def _capture(model: nn.Module, name: str, fate: Fate, run: Callable[[], object]) -> _Seen:
    """What a module sees while `run` runs the network; nothing after that is run."""
    found: list[tuple[Tensor, Tensor]] = []
    watcher = None if fate.addend is None else SumWatcher(fate.addend, fate.position)

    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((args[0].clone(), output.clone()))
        if watcher is None:
            raise Stop
        watcher.armed = True

    handle = model.get_submodule(name).register_forward_hook(hook)
    try:
        with watcher or contextlib.nullcontext():
            run()
    except Stop:
        pass
    finally:
        handle.remove()
    x, y = found[0]
    return _Seen(x, y, None if watcher is None else watcher.operand)
