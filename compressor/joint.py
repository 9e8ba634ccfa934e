"""The last correction of a refitted network: all its channels together, for its outputs.

The refit solves one layer after the other, each towards what the original computes there. What
counts is what comes out at the end, and that moves nearly linearly when every channel is scaled
and shifted a little. So these changes, two numbers a channel, are solved for at once: a
Gauss-Newton step on the divergence of the outputs from the original's, damped as by Levenberg and
Marquardt. Few enough numbers for a few hundred images; no labels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves

from compressor.counting import evaluating
from compressor.data import Batches, Inputs, device_of, on, part_of, size_of, slices, split
from compressor.few import at_once
from compressor.judge import TEMPERATURE
from compressor.patches import channel_dim
from compressor.progress import Event, Progress, silent
from compressor.replay import Calls

_DAMPING = (10.0, 3.0, 1.0)  # shares of the mean curvature
_DRAWS = 8  # random projections of an image's outputs, in the metric of the divergence
_CLASSES = 16  # up to which all directions are taken instead
_ROWS = 6144  # of the Jacobian that are kept, where it has more columns; 36,000 take 1 GiB
_NUMBERS = 1 << 28  # in them, at most


@dataclass(frozen=True)
class _Knob:
    """One module whose output channels can be scaled and shifted.

    Attributes:
        name: of the module.
        unit: what a shift of 1 is, `[C]`: the spread of the channel.
    """

    name: str
    unit: Tensor


def joint_steps(
    small: nn.Module,
    original: nn.Module,
    calls: Calls,
    calibration: Batches,
    progress: Progress = silent,
) -> Iterator[nn.Module]:
    """Copies of a network after one step, the most cautious first.

    Args:
        small: the network to correct; not touched.
        original: what it is to answer like.
        calls: of the original's modules.
        calibration: batches; targets are not used.
        progress: told after each few images.

    Yields:
        One network for each damping; none where there is nothing to scale.

    Raises:
        RuntimeError: the network cannot be differentiated.
    """
    network = copy.deepcopy(small).requires_grad_(False)
    with evaluating(network), evaluating(original):
        first = _inputs(calibration, device_of(small))
        knobs = _knobs(network, calls, next(first, ()))
        if not knobs:
            return
        curvature, gradient = _linearised(network, original, knobs, calibration, progress)
    for share in _DAMPING:
        moved = copy.deepcopy(network)
        _turn(moved, knobs, -curvature.damped(gradient, share))
        yield moved


def _inputs(calibration: Batches, device: torch.device) -> Iterator[Inputs]:
    for batch in calibration:
        inputs = on(device, split(batch)[0])
        for part in slices(0, size_of(inputs), at_once(inputs)):
            yield part_of(inputs, part)


def _knobs(network: nn.Module, calls: Calls, inputs: Inputs) -> list[_Knob]:
    """Modules that run once and can absorb a scale and a shift, in the order in which they run."""
    owners: dict[int, int] = {}
    for parameter in (p for m in network.modules() for p in m._parameters.values()):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    found: list[_Knob] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor) and len(output) == size_of(inputs):
                others = [i for i in range(output.dim()) if i != _channels(module, output)]
                spread = output.float().std(others, unbiased=False)
                found.append(_Knob(name, spread.clamp_min(1e-6)))

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in network.named_modules()
        if name in calls.once
        and _adjustable(module)
        and all(owners[id(p)] == 1 for p in (module.weight, module.bias))
    ]
    try:
        if inputs:
            with torch.no_grad():
                network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _adjustable(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm):
        return module.affine and module.running_var is not None
    plain = isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, _ConvTransposeNd)
    return plain and module.bias is not None


def _channels(module: nn.Module, output: Tensor) -> int:
    return 1 if isinstance(module, _BatchNorm) else channel_dim(module, output)


class _Curvature:
    """The Gauss-Newton matrix JᵀJ of `P` numbers: itself, or J where that is smaller."""

    def __init__(self, numbers: int) -> None:
        whole = numbers <= _ROWS
        self._matrix = torch.zeros(numbers, numbers, dtype=torch.float64) if whole else None
        self._rows: list[Tensor] = []
        self._room = min(_ROWS, _NUMBERS // numbers)

    def add(self, rows: Tensor) -> None:
        """More rows of J, `[R, P]`."""
        if self._matrix is not None:
            self._matrix += (rows.T @ rows).cpu()
            return
        self._rows.append(rows.cpu())
        self._room -= len(rows)

    def full(self, rows: int) -> bool:
        """Whether there is no room for so many more rows."""
        return self._matrix is None and rows > self._room

    def damped(self, gradient: Tensor, share: float) -> Tensor:
        """(JᵀJ + share · mean of its diagonal)⁻¹ times the gradient, `[P]`, float64."""
        if self._matrix is not None:
            level = max(share * float(self._matrix.diagonal().mean()), 1e-30)
            return _over(self._matrix, level, gradient)
        rows, gram = self._kept
        level = max(share * float(gram.diagonal().sum()) / rows.shape[1], 1e-30)
        inside = _over(gram, level, (rows @ gradient.float()).double())
        return (gradient - (rows.T @ inside.float()).double()) / level

    @cached_property
    def _kept(self) -> tuple[Tensor, Tensor]:
        """All rows, and JJᵀ: the same for every damping."""
        rows = torch.cat(self._rows)
        self._rows.clear()
        return rows, (rows @ rows.T).double()


def _over(matrix: Tensor, level: float, vector: Tensor) -> Tensor:
    damped = matrix + level * torch.eye(len(matrix), dtype=torch.float64)
    return torch.cholesky_solve(vector[:, None], torch.linalg.cholesky(damped))[:, 0]


def _linearised(
    network: nn.Module,
    original: nn.Module,
    knobs: Sequence[_Knob],
    calibration: Batches,
    progress: Progress,
) -> tuple[_Curvature, Tensor]:
    """Curvature and gradient `[P]` of the divergence, summed over images.

    For each knob there are as many scales as channels, then as many shifts.
    """
    curvature = _Curvature(2 * sum(len(knob.unit) for knob in knobs))
    gradients: list[Tensor] = []
    images = 0
    draws = torch.Generator().manual_seed(0)
    for inputs in _inputs(calibration, device_of(network)):
        with torch.no_grad():
            wanted = tree_leaves(original(*inputs))
        found = _jacobian(network, knobs, inputs, wanted, draws)
        if gradients and curvature.full(sum(map(len, found[:-1]))):
            break
        for block in found[:-1]:
            curvature.add(block)
        gradients.append(found[-1].cpu().double().sum(0))
        images += size_of(inputs)
        progress(Event("joint step", images, None, f"gradients of {images} images"))
    return curvature, torch.stack(gradients).sum(0)


def _jacobian(
    network: nn.Module,
    knobs: Sequence[_Knob],
    inputs: Inputs,
    wanted: Sequence[Any],
    draws: torch.Generator,
) -> list[Tensor]:
    """Derivatives by all knobs, `[N, P]`, of each projection; the last is of the divergence."""
    turned: dict[str, tuple[Tensor, Tensor]] = {}
    size = size_of(inputs)

    def watch(knob: _Knob) -> Any:
        def hook(module: nn.Module, _: Any, output: Tensor) -> Tensor:
            scale, shift = (
                torch.zeros(size, len(knob.unit), device=output.device, requires_grad=True)
                for _ in range(2)
            )
            turned[knob.name] = scale, shift
            shape = [size] + [1] * (output.dim() - 1)
            shape[_channels(module, output)] = -1
            return output * (1 + scale.view(shape)) + (shift * knob.unit).view(shape)

        return hook

    modules: Mapping[str, nn.Module] = dict(network.named_modules())
    handles = [modules[knob.name].register_forward_hook(watch(knob)) for knob in knobs]
    try:
        with torch.enable_grad():
            outputs = tree_leaves(network(*inputs))
    finally:
        for handle in handles:
            handle.remove()
    pairs = [
        (out, theirs)
        for out, theirs in zip(outputs, wanted, strict=True)
        if isinstance(out, Tensor) and out.requires_grad
    ]
    outs = [out for out, _ in pairs]
    leaves = [leaf for knob in knobs for leaf in turned[knob.name]]
    found = []
    for cotangents in zip(*(_projections(*pair, draws) for pair in pairs), strict=True):
        got = torch.autograd.grad(
            outs, leaves, cotangents, retain_graph=True, materialize_grads=True
        )
        found.append(torch.cat(got, 1))
    return found


def _projections(out: Tensor, wanted: Tensor, draws: torch.Generator) -> list[Tensor]:
    """Square roots of the curvature of the divergence, and its gradient."""
    out = out.detach()
    if out.dim() == 2 and 1 < out.shape[1] <= _CLASSES:
        noise = [x.expand_as(out) for x in torch.eye(out.shape[1], device=out.device)]
    else:
        noise = [
            torch.randn(out.shape, generator=draws).to(out) / _DRAWS**0.5 for _ in range(_DRAWS)
        ]
    if out.dim() == 2 and out.shape[1] > 1:
        ours, theirs = ((x / TEMPERATURE).softmax(1) for x in (out, wanted))
        root = ours.sqrt()
        squares = [root * z - ours * (root * z).sum(1, keepdim=True) for z in noise]
        return [x / TEMPERATURE for x in (*squares, ours - theirs)]
    level = wanted.float().square().mean().clamp_min(1e-12).sqrt() * out[0].numel() ** 0.5
    return [*(z / level for z in noise), (out - wanted) / level**2]


def _turn(network: nn.Module, knobs: Sequence[_Knob], step: Tensor) -> None:
    place = 0
    for knob in knobs:
        module = network.get_submodule(knob.name)
        weight, bias = cast(Tensor, module.weight), cast(Tensor, module.bias)
        size = len(knob.unit)
        scale, shift = step[place : place + size], step[place + size : place + 2 * size]
        place += 2 * size
        with torch.no_grad():
            weight.mul_((1 + scale).to(weight).view(-1, *[1] * (weight.dim() - 1)))
            bias.mul_((1 + scale).to(bias)).add_((shift * knob.unit.cpu()).to(bias))
