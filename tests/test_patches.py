"""Patches against the module itself: with a weight that picks one input, it returns that input."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from compressor.network.patches import (
    LARGEST_PATCH,
    as_matrix,
    channel_dim,
    from_matrix,
    matrix_shape,
    outputs,
    patches,
    refittable,
)
from compressor.refit.moments import Moments

CASES: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(5, 3), (2, 5)),
    (nn.Linear(5, 3), (2, 4, 5)),
    (nn.Conv1d(4, 6, 3, 2, 1), (2, 4, 9)),
    (nn.Conv2d(4, 6, 1), (2, 4, 5, 5)),
    (nn.Conv2d(4, 6, 1, 2, bias=False), (2, 4, 5, 6)),
    (nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0)), (2, 4, 7, 6)),
    (nn.Conv2d(4, 6, 3, padding=2, dilation=(2, 3)), (2, 4, 8, 9)),
    (nn.Conv2d(4, 6, (3, 4), padding="same"), (2, 4, 6, 7)),
    (nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 6, 7)),
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 6, 7)),
    (nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="replicate"), (2, 4, 6, 7)),
    (nn.Conv2d(4, 6, 3, 2, padding=1, padding_mode="circular"), (2, 4, 6, 7)),
    (nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"), (2, 4, 6, 7)),
    (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 7)),
    (nn.Conv2d(4, 8, 5, 2, 2, groups=4), (2, 4, 6, 7)),
    (nn.Conv2d(4, 6, 3), (4, 6, 7)),
    (nn.Conv3d(4, 6, (1, 3, 2), (1, 2, 1), (0, 1, 1), groups=2), (2, 4, 3, 5, 4)),
    (nn.ConvTranspose1d(4, 6, 3, 2), (2, 4, 5)),
    (nn.ConvTranspose2d(4, 6, 4, 2, 1), (2, 4, 5, 6)),
    (nn.ConvTranspose2d(4, 6, 3, (2, 3), (1, 0), (1, 2)), (2, 4, 5, 6)),
    (nn.ConvTranspose2d(4, 6, 3, 1, 3, dilation=2), (2, 4, 5, 6)),
    (nn.ConvTranspose2d(4, 4, 3, 2, 1, 1, groups=4), (2, 4, 5, 6)),
    (nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (2, 4, 5, 6)),
    (nn.ConvTranspose3d(4, 6, 2, 2, bias=False), (2, 4, 2, 3, 2)),
]


def picked(module: nn.Module, x: Tensor) -> Tensor:
    """Patches `[G, positions, D]` by running the module once for every input of a patch."""
    picker = copy.deepcopy(module).requires_grad_(False)
    picker.bias = None
    groups, rows, size = matrix_shape(module)
    columns = []
    for i in range(size):
        matrix = torch.zeros(groups, rows, size)
        matrix[:, :, i] = 1.0
        picker.weight.copy_(from_matrix(module, matrix))
        y = picker(x)
        y = y.movedim(channel_dim(module, y), -1).reshape(-1, groups, rows)
        columns.append(y[:, :, 0])
    return torch.stack(columns, 2).transpose(0, 1)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("module", "shape"), CASES, ids=lambda v: str(v).replace(" ", ""))
def test_patches_are_what_the_module_reads(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(patches(module, x), picked(module, x))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("module", "shape"), CASES, ids=lambda v: str(v).replace(" ", ""))
@torch.no_grad()
def test_patches_times_the_weight_are_the_outputs(
    module: nn.Module, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    matrix = as_matrix(module, module.weight)
    assert torch.equal(from_matrix(module, matrix), module.weight)
    assert torch.equal(from_matrix(module, matrix.flatten(0, 1)), module.weight)
    products = patches(module, x) @ matrix.mT
    if module.bias is not None:
        products += module.bias.reshape(matrix.shape[0], 1, -1)
    assert torch.allclose(products, outputs(module, module(x)), atol=1e-5)


class OwnPadding(nn.Conv2d):
    """Pads by itself, as timm's `Conv2dSame` does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class Renamed(nn.Conv2d):
    """Computes what its parent does."""


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (nn.LSTM(3, 4), "a LSTM is not refitted"),
        (OwnPadding(3, 4, 2), "OwnPadding computes something of its own, not what Conv2d does"),
        (parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), "computed from other parameters"),
        (nn.ConvTranspose2d(4, 4, 3, groups=2), "grouped transposed"),
        (nn.Linear(LARGEST_PATCH + 1, 1), "it reads 6001 numbers at once, more than 6000"),
        (nn.Conv2d(3, 4, 3, 2, 1, 2, 1, False, "circular"), ""),
        (Renamed(3, 4, 3), ""),
        (nn.ConvTranspose2d(4, 4, 3, groups=4), ""),
        (nn.Conv2d(960, 960, 7, groups=960), ""),
    ],
)
def test_what_cannot_be_refitted_says_why(module: nn.Module, why: str) -> None:
    found = refittable(module)
    assert why in found
    assert bool(found) == bool(why)


@pytest.mark.parametrize("step", [2, 3])
def test_fewer_positions_are_some_of_all(step: int) -> None:
    module, x = nn.Conv2d(4, 6, 3, padding=1, groups=2), torch.randn(2, 4, 8, 8)
    places = torch.arange(2 * 8 * 8).reshape(2, 8, 8)[:, ::step, ::step].flatten()
    assert torch.equal(patches(module, x, step), patches(module, x)[:, places])
    y = module(x).detach()
    assert torch.equal(outputs(module, y, step), outputs(module, y)[:, places])
    some, same = Moments(2, 18, 3), Moments(2, 18, 3)
    some.observe(module, x, y, step)
    same.add(patches(module, x)[:, places], outputs(module, y)[:, places])
    assert some.count == same.count == len(places)
    assert torch.allclose(some.cross(centred=True), same.cross(centred=True))
