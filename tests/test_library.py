"""Networks from the library: right weights, the original untouched, better than slicing."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from adapters.generic import GenericAdapter
from compressor.network.data import tensors_hash
from compressor.network.proof import tell_channels_apart
from compressor.network.structure import materialise
from compressor.network.tracing import trace_fates
from compressor.network.verify import verify_space
from compressor.refit.library import make_library
from compressor.refit.sequence import refit
from compressor.space import Architecture, SearchSpace
from tests import networks

EXAMPLE = (torch.zeros(1, 3, 16, 16),)
NETWORKS = [
    networks.Residual, networks.Separable, networks.Grouped, networks.SqueezeExcite,
    networks.Dense, networks.SharedModule, networks.Flatten, networks.LargeKernels,
    networks.PaddedShortcuts,
]  # fmt: skip


def images(batches: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    coarse = [torch.randn(16, 3, 4, 4, generator=generator) for _ in range(batches)]
    return [functional.interpolate(x, 16, mode="bilinear") for x in coarse]


def read(network: Any) -> tuple[nn.Module, SearchSpace]:
    torch.manual_seed(0)
    model = network().eval().requires_grad_(False)
    tell_channels_apart(model)
    return model, verify_space(model, EXAMPLE, GenericAdapter().read(model, EXAMPLE))


def middle(space: SearchSpace) -> Architecture:
    return tuple((size - 1) // 2 for size in space.sizes)


def loss(model: nn.Module, small: nn.Module) -> float:
    """Squared difference of the outputs on the calibration images."""
    with torch.no_grad():
        return sum(float((model(x) - small(x)).pow(2).sum()) for x in images())


@pytest.mark.parametrize("network", NETWORKS)
def test_library_and_refit_come_closer_to_the_original_than_slicing(network: Any) -> None:
    model, space = read(network)
    before = tensors_hash(model.state_dict().items())
    library = make_library(model, space, EXAMPLE, images())
    architecture = middle(space)
    sliced = materialise(model, space, architecture).eval()
    built = library.build(architecture)
    refitted = copy.deepcopy(built)
    refit(model, refitted, library.space, architecture, EXAMPLE, images())
    assert loss(model, built) < loss(model, sliced)
    assert loss(model, refitted) < loss(model, sliced)
    assert tensors_hash(model.state_dict().items()) == before


@pytest.mark.parametrize("network", NETWORKS)
def test_nothing_cut_nothing_changed(network: Any) -> None:
    model, space = read(network)
    library = make_library(model, space, EXAMPLE, images(1))
    same = library.build(space.original)
    assert loss(model, same) == 0.0
    refit(model, same, library.space, space.original, EXAMPLE, images(1))
    assert loss(model, same) == 0.0


@pytest.mark.parametrize("network", NETWORKS)
def test_shapes_are_those_of_the_architecture(network: Any) -> None:
    model, space = read(network)
    library = make_library(model, space, EXAMPLE, images(1))
    draw = random.Random(0)  # noqa: S311  (a reproducible sample)
    for _ in range(3):
        architecture = tuple(draw.randrange(size) for size in space.sizes)
        got = {n: t.shape for n, t in library.build(architecture).state_dict().items()}
        cut = materialise(model, space, architecture).state_dict()
        assert got == {n: t.shape for n, t in cut.items()}


class Chain(nn.Module):
    """A convolution without bias between a BatchNorm-free producer and a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(functional.relu(self.first(x))))
        return self.head(functional.relu(x).mean((2, 3)))


def test_the_weight_is_what_regression_on_the_images_gives() -> None:
    model, space = read(Chain)
    layer = next(i for i, x in enumerate(space.layers) if x.name == "first")
    option = len(space.layers[layer].choices) // 2
    architecture = (*space.original[:layer], option, *space.original[layer + 1 :])
    library = make_library(model, space, EXAMPLE, images())
    small = library.build(architecture)
    x = torch.cat(images())
    with torch.no_grad():
        wanted = model.second(functional.relu(model.first(x)))
        features = functional.relu(small.first(x))
        patches = functional.unfold(features, 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    targets = wanted.flatten(2).transpose(1, 2).flatten(0, 1).double()
    rows = torch.cat([patches, torch.ones(len(patches), 1)], 1)
    solution = torch.linalg.lstsq(rows, targets).solution
    fitted = (rows @ solution - targets).pow(2).sum()
    weight = small.second.weight.flatten(1).double()
    # The constant went into the BatchNorm's mean.
    constant = (model.norm.running_mean - small.norm.running_mean).double()
    ours = (patches @ weight.T + constant - targets).pow(2).sum()
    assert float(ours) <= 1.02 * float(fitted)  # the ridge costs a little


def test_dead_ends_are_named_not_refitted() -> None:
    model, space = read(networks.Grouped)
    library = make_library(model, space, EXAMPLE, images(1))
    assert library.sliced == ()
    assert "two.0" in library.consumers


def test_fates_follow_outputs_into_norms_and_sums() -> None:
    model, _ = read(networks.PaddedShortcuts)
    fates = trace_fates(model, EXAMPLE)
    assert fates["conv1"].norm == "bn1"
    assert fates["conv1"].addend is None
    assert fates["blocks.0.conv1"].addend is None
    sums = [fates[f"blocks.{i}.conv2"].addend for i in range(3)]
    assert sums == [0, 0, 0]  # the first sum after each
    assert fates["blocks.0.conv2"].norm == "blocks.0.bn2"


def test_a_module_that_runs_twice_has_no_single_fate() -> None:
    model, _ = read(networks.SharedModule)
    assert trace_fates(model, EXAMPLE)["again"].calls == 2


def test_drift_of_the_shortcut_is_made_up_for() -> None:
    """The sum's error after a refit is smaller than the shortcut's own drift."""
    model, space = read(networks.Residual)
    names = [layer.name for layer in space.layers]
    architecture = tuple(
        0 if name.startswith("stem") else size - 1
        for name, size in zip(names, space.sizes, strict=True)
    )
    library = make_library(model, space, EXAMPLE, images())
    built = library.build(architecture)
    refitted = copy.deepcopy(built)
    refit(model, refitted, library.space, architecture, EXAMPLE, images())
    assert loss(model, refitted) < loss(model, built)


class Attention(nn.Module):
    """Uses its projection's weight without calling the projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = networks.conv(3, 16)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = networks.conv(16, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        tokens = x.flatten(2).transpose(1, 2)
        tokens, _ = self.attend(tokens, tokens, tokens, need_weights=False)
        x = x + tokens.transpose(1, 2).reshape(x.shape)
        return self.head(self.out(x).mean((2, 3)))


def test_modules_that_are_never_called_are_left_alone() -> None:
    model, space = read(Attention)
    fates = trace_fates(model, EXAMPLE)
    assert "attend.out_proj" not in fates
    library = make_library(model, space, EXAMPLE, images(1))
    architecture = middle(space)
    built = library.build(architecture)
    refit(model, built, library.space, architecture, EXAMPLE, images(1))
    assert bool(torch.isfinite(built(images(1)[0])).all())


def from_both_starts(network: Any) -> tuple[float, float]:
    """Losses after the refit of what the library built, and of what was only cut."""
    model, space = read(network)
    library = make_library(model, space, EXAMPLE, images())
    # the trunk of the one with padded shortcuts stays: cut as well, starts differ by a quarter
    architecture = tuple(
        space.sizes[i] - 1 if space.layers[i].name == "conv1" else option
        for i, option in enumerate(middle(space))
    )
    starts = [library.build(architecture), materialise(model, library.space, architecture).eval()]
    for small in starts:
        refit(model, small, library.space, architecture, EXAMPLE, images())
    built, sliced = (loss(model, small) for small in starts)
    return built, sliced


@pytest.mark.parametrize("network", [networks.Residual, networks.PaddedShortcuts])
def test_with_a_small_ridge_it_matters_little_where_the_refit_starts_from(
    network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.refit.step.FOLDS", 1)
    monkeypatch.setattr("compressor.refit.folds._FIRST", 0)
    monkeypatch.setattr("compressor.refit.folds._AGAIN", 0)
    built, sliced = from_both_starts(network)
    assert built == pytest.approx(sliced, rel=0.05)


@pytest.mark.parametrize("network", [networks.Residual, networks.PaddedShortcuts])
def test_with_chosen_ridges_it_matters_not_much_more(network: Any) -> None:
    built, sliced = from_both_starts(network)
    assert built == pytest.approx(sliced, rel=0.15)


def test_a_batchnorm_beside_which_the_output_is_read_takes_up_no_constant() -> None:
    class PreActivated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
            self.inner, self.plain = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1, bias=False)
            self.after = nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y: Tensor = x + self.inner(self.norm(x).relu())
            return self.after(self.plain(y))

    fates = trace_fates(PreActivated().eval(), (torch.randn(1, 3, 8, 8),))
    assert fates["stem"].norm is None
    assert fates["plain"].norm == "after"
