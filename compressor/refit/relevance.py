"""Where in the images a layer's answer matters to the network's output.

A refit that cannot be right everywhere should be right where it counts. The relevance of a
position is the squared gradient, over all channels of the layer's output there, of random
projections of the network's output: the diagonal of the Gauss-Newton matrix of the squared error
of the outputs, summed over channels, by Hutchinson's estimate. It needs no labels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compressor.network.counting import evaluating
from compressor.network.data import Batches, Inputs, device_of, on, part_of, size_of, slices, split
from compressor.network.patches import channel_dim

_DRAWS = 2  # random projections of the output
_AT_ONCE = 16  # images whose activations are held for the gradients
_MOST = 10.0  # relevance beyond so many times the mean counts no more
_FLOOR = 0.3  # share of the weight that every position has alike


@dataclass(frozen=True)
class Relevance:
    """Weights of positions, with mean 1 before the largest are cut off.

    Attributes:
        weights: module to one tensor `[N, …]` a batch, without the channel dimension.
    """

    weights: Mapping[str, Sequence[Tensor]]

    def of(self, name: str, batch: int, step: int) -> Tensor:
        """Weights of the patches of one batch, `[positions]`, in the order of `patches`."""
        found = self.weights[name][batch]
        return found[(slice(None), *(slice(None, None, step),) * (found.dim() - 1))].flatten()


def relevance(model: nn.Module, names: Sequence[str], calibration: Batches) -> Relevance:
    """Relevance of every position of the named modules' outputs in the original network.

    Args:
        model: the original network; not touched.
        names: modules that run once in a forward pass.
        calibration: batches; targets are not used.

    Raises:
        RuntimeError: the network cannot be differentiated.
    """
    differentiable = copy.deepcopy(model).requires_grad_(True)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    with evaluating(differentiable), torch.enable_grad():
        for number, batch in enumerate(calibration):
            inputs = on(device_of(model), split(batch)[0])
            parts = [_squares(differentiable, names, p, number) for p in _parts(inputs)]
            for name in names:
                found[name].append(torch.cat([part[name] for part in parts]))
    return Relevance({name: _weights(squares) for name, squares in found.items()})


def _parts(inputs: Inputs) -> list[Inputs]:
    return [part_of(inputs, part) for part in slices(0, size_of(inputs), _AT_ONCE)]


def _squares(
    model: nn.Module, names: Sequence[str], inputs: Inputs, seed: int
) -> dict[str, Tensor]:
    """Squared gradients of every position, summed over channels and draws."""
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            channels = channel_dim(module, output)

            def add(gradient: Tensor) -> None:
                square = gradient.detach().square().sum(channels)
                sums[name] = sums[name] + square if name in sums else square

            output.register_hook(add)  # type: ignore[no-untyped-call]  # torch leaves it untyped

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [watch(name) for name in names]
    try:
        leaves = [
            x for x in tree_leaves(model(*inputs)) if isinstance(x, Tensor) and x.requires_grad
        ]
        draws = torch.Generator().manual_seed(seed)
        for draw in range(_DRAWS):
            signs = [torch.randn(x.shape, generator=draws).to(x) for x in leaves]
            torch.autograd.backward(leaves, signs, retain_graph=draw + 1 < _DRAWS)
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    missing = [name for name in names if name not in sums]
    if missing:
        raise RuntimeError(f"no gradient reaches {missing[0]!r}")
    return sums


def _weights(squares: Sequence[Tensor]) -> list[Tensor]:
    mean = torch.cat([x.flatten() for x in squares]).double().mean().clamp_min(1e-30)
    return [((x / mean.to(x)).clamp_max(_MOST) * (1 - _FLOOR) + _FLOOR).cpu() for x in squares]
