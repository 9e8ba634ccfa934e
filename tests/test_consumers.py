"""Every kind of consumer, refitted: the weight is that of least squares on explicit patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from adapters.generic import GenericAdapter
from compressor.errors import DataError
from compressor.network.patches import as_matrix
from compressor.network.proof import tell_channels_apart
from compressor.network.structure import materialise
from compressor.network.verify import verify_space
from compressor.refit.consumers import only_sliced
from compressor.refit.least_squares import RIDGE
from compressor.refit.library import LayerLibrary, make_library
from compressor.space import Architecture, SearchSpace
from tests import networks
from tests.test_patches import OwnPadding, picked

SIZES = {1: (40,), 2: (12, 12), 3: (6, 8, 8)}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Chain(nn.Module):
    """A convolution of 16 channels, the consumer, and a head."""

    def __init__(self, consumer: nn.Module, spatial: int = 2, norm: int = 0) -> None:
        super().__init__()
        self.first = CONVOLUTIONS[spatial](3, 16, 3, padding=1)
        self.consumer = consumer
        self.norm = NORMS[spatial](norm) if norm else nn.Identity()
        self.head = nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.consumer(functional.relu(self.first(x))))
        return self.head(torch.tanh(x).flatten(2).mean(2))


class Flat(nn.Module):
    """A linear layer after a flatten: 9 positions a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, 4, padding=1)
        self.consumer = nn.Linear(16 * 9, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x)).flatten(1)
        return self.head(torch.tanh(self.consumer(x)))


class Two(nn.Module):
    """Two consumers of one group, one without anything that takes a constant up."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.consumer = nn.Conv2d(16, 12, 3, padding=1, bias=False)
        self.other = nn.Conv2d(16, 12, 1, bias=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        return self.head(torch.tanh(self.consumer(x) + self.other(x)).mean((2, 3)))


class Concat(nn.Module):
    """One consumer of two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(3, 24, 1)
        self.consumer = nn.Conv2d(40, 12, 3)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.second(x), functional.relu(self.first(x))], 1)
        return self.head(torch.tanh(self.consumer(x)).mean((2, 3)))


def conv(*args: Any, n: int = 2, norm: int = 0, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: Chain(CONVOLUTIONS[n](16, *args, **kwargs), n, norm)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "plain": conv(12, 3),
    "before a norm": conv(12, 3, bias=False, norm=12),
    "no constant": conv(12, 3, bias=False),
    "strided": conv(12, 3, 2, 1),
    "dilated": conv(12, 3, padding=2, dilation=2),
    "reflect": conv(12, 3, padding=1, padding_mode="reflect"),
    "replicate": conv(12, 3, padding=1, padding_mode="replicate"),
    "circular": conv(12, 5, padding=2, padding_mode="circular"),
    "same": conv(12, 5, padding="same"),
    "grouped": conv(12, 3, padding=1, groups=4),
    "grouped before a norm": conv(12, 3, groups=4, bias=False, norm=12),
    "1-D": conv(12, 5, 2, n=1, norm=12),
    "3-D": conv(12, 3, n=3),
    "transposed": lambda: Chain(nn.ConvTranspose2d(16, 12, 3, 2, 1, 1)),
    "transposed 1-D": lambda: Chain(nn.ConvTranspose1d(16, 12, 4, 2), 1),
    "flatten": Flat,
    "two consumers": Two,
    "concat": Concat,
}
CROPPED: dict[str, Callable[[], nn.Module]] = {
    "5x5": conv(12, 5, padding=2),
    "depthwise 5x5": conv(16, 5, padding=2, groups=16, bias=False, norm=16),
    "grouped 7x7": conv(12, 7, padding=3, groups=4),
    "depthwise 3-D": conv(16, 5, padding=2, n=3, groups=16),
}


def images(model: nn.Module, batches: int = 3) -> list[Tensor]:
    size = SIZES[getattr(model, "first", nn.Conv2d(1, 1, 1)).weight.dim() - 2]
    generator = torch.Generator().manual_seed(1)
    rough = [torch.randn(8, 3, *(n // 2 for n in size), generator=generator) for _ in range(3)]
    return [functional.interpolate(x, size) for x in rough[:batches]]


def read(make: Callable[[], nn.Module]) -> tuple[nn.Module, SearchSpace, LayerLibrary]:
    torch.manual_seed(0)
    model = make().eval()
    model(images(model)[0])  # lazy modules take their shape
    model.requires_grad_(False)
    tell_channels_apart(model)
    example = (images(model)[0][:1],)
    space = verify_space(model, example, GenericAdapter().read(model, example))
    library = make_library(model, space, example, images(model))
    assert library.sliced == only_sliced(model, space, example) == ()
    return model, library.space, library


def only(space: SearchSpace, name: str, option: int) -> Architecture:
    """The original but for one layer."""
    assert name in [layer.name for layer in space.layers]
    pairs = zip(space.layers, space.original, strict=True)
    return tuple(option if layer.name == name else last for layer, last in pairs)


def read_by(model: nn.Module, name: str) -> Tensor:
    """Inputs of a module on all images."""
    found: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, a: found.append(a[0]))
    for x in images(model):
        model(x)
    hook.remove()
    return torch.cat(found)


def solved(model: nn.Module, name: str, kept: Tensor, constant: bool) -> Tensor:
    """Weight `[G, O / G, |kept|]` by `lstsq` on the original's patches, with the ridge as rows."""
    module = model.get_submodule(name)
    x = picked(module, read_by(model, name)).double()
    weight = as_matrix(module, module.weight).double()
    found = []
    for inputs, old in zip(x, weight, strict=True):
        centred = inputs - inputs.mean(0) if constant else inputs
        level = (RIDGE * centred.square().mean() * len(centred)).sqrt()
        rows = torch.cat([centred, level * torch.eye(centred.shape[1])])
        answer = torch.linalg.lstsq(rows[:, kept], rows @ old.T, driver="gels")
        found.append(answer.solution.T)
    return torch.stack(found)


def gap(model: nn.Module, small: nn.Module) -> float:
    return sum(float((model(x) - small(x)).square().sum()) for x in images(model))


def check(model: nn.Module, small: nn.Module, name: str, kept: Tensor, norm: str | None) -> None:
    """The refitted weight, and the constant beside it, are those of least squares."""
    module, cut = model.get_submodule(name), small.get_submodule(name)
    constant = norm is not None or module.bias is not None
    wanted = solved(model, name, kept, constant)
    got = as_matrix(cut, cut.weight).double()
    assert torch.allclose(got, wanted, rtol=1e-3, atol=1e-4)
    mean = picked(module, read_by(model, name)).double().mean(1)
    shift = (as_matrix(module, module.weight).double() @ mean[:, :, None]).flatten()
    shift = shift - (got @ mean[:, kept, None]).flatten()
    if module.bias is not None:
        assert torch.allclose(cut.bias - module.bias, shift.float(), atol=1e-4)
    elif norm is not None:
        before, after = (m.get_submodule(norm).running_mean for m in (model, small))
        assert torch.allclose(before - after, shift.float(), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_fewer_channels(kind: str) -> None:
    model, space, library = read(KINDS[kind])
    architecture = only(space, "first", 1)
    small = library.build(architecture)
    consumer = library.consumers["consumer"]
    gone = space.removed(architecture)["consumer.weight", consumer.input_dim]
    area = consumer.area
    kept = [i for i in range(consumer.weight.shape[2]) if i // area not in gone]
    norm = "norm" if getattr(model, "norm", None).__class__ in NORMS.values() else None
    check(model, small, "consumer", torch.tensor(kept), norm)
    assert gap(model, small) < gap(model, materialise(model, space, architecture))


@torch.no_grad()
@pytest.mark.parametrize("kind", CROPPED)
def test_smaller_kernels(kind: str) -> None:
    model, space, library = read(CROPPED[kind])
    layer = next(x for x in space.layers if x.kernel and x.kernel.tensor == "consumer.weight")
    width = layer.choices[-1].channels
    option = next(i for i, c in enumerate(layer.choices) if (c.channels, c.kernel) == (width, 3))
    architecture = only(space, layer.name, option)
    small = library.build(architecture)
    module, cut = model.consumer, small.consumer
    index = torch.arange(as_matrix(module, module.weight).shape[2])
    index = index.reshape(-1, *module.kernel_size)
    ring = (module.kernel_size[0] - 3) // 2
    for axis in range(1, index.dim()):
        index = index.narrow(axis, ring, 3)
    assert set(cut.kernel_size) == {3}
    check(model, small, "consumer", index.flatten(), None if module.bias is not None else "norm")
    assert gap(model, small) < gap(model, materialise(model, space, architecture))


@torch.no_grad()
def test_fewer_groups_and_a_smaller_kernel_at_once() -> None:
    _, space, library = read(CROPPED["depthwise 5x5"])
    layer = next(x for x in space.layers if x.kernel and x.group)
    option = next(i for i, c in enumerate(layer.choices) if c.kernel == 3 and c.channels != 16)
    small = library.build(only(space, layer.name, option))
    whole = next(i for i, c in enumerate(layer.choices) if c.kernel == 3 and c.channels == 16)
    refitted = library.build(only(space, layer.name, whole))
    gone = space.removed(only(space, layer.name, option))["consumer.weight", 0]
    kept = [i for i in range(16) if i not in gone]
    # A channel's own kernel is refitted the same, whichever other channels stay.
    assert small.consumer.groups == len(kept)
    assert torch.allclose(small.consumer.weight, refitted.consumer.weight[kept], atol=1e-6)


@torch.no_grad()
def test_a_norm_without_running_statistics_takes_the_constant_by_itself() -> None:
    def make() -> nn.Module:
        model = KINDS["before a norm"]()
        model.norm = nn.BatchNorm2d(12, track_running_stats=False)
        return model

    model, space, library = read(make)
    small = library.build(only(space, "first", 1))
    assert gap(model, small) < gap(model, materialise(model, space, only(space, "first", 1)))


class Keyword(Chain):
    """Calls its consumer with more than the input."""

    def __init__(self) -> None:
        super().__init__(nn.ConvTranspose2d(16, 12, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        return self.head(torch.tanh(self.consumer(x, output_size=(26, 26))).mean((2, 3)))


def test_what_is_only_sliced_is_named_with_the_reason() -> None:
    for make, why in (
        (Keyword, "otherwise than by calling the module with one input"),
        (lambda: Chain(OwnPadding(16, 12, 3)), "computes something of its own"),
    ):
        torch.manual_seed(0)
        model = make().eval()
        example = (images(model)[0][:1],)
        model(*example)
        model.requires_grad_(False)
        space = verify_space(model, example, GenericAdapter().read(model, example))
        library = make_library(model, space, example, images(model, 1))
        assert [part.name for part in library.sliced] == ["consumer"]
        assert why in library.sliced[0].reason
        assert library.sliced == only_sliced(model, space, example)
        small = library.build(only(space, "first", 0))
        assert bool(torch.isfinite(small(*example)).all())


def test_numbers_that_are_not_finite_are_an_error_that_names_the_layer() -> None:
    torch.manual_seed(0)
    model = Two().eval().requires_grad_(False)
    example = (images(model)[0][:1],)
    space = verify_space(model, example, GenericAdapter().read(model, example))
    with pytest.raises(DataError, match="'consumer' reads infinity or NaN"):
        make_library(model, space, example, [torch.full((2, 3, 12, 12), torch.inf)])


@pytest.mark.parametrize("network", [networks.Grouped, networks.LargeKernels, networks.Flatten])
def test_nothing_is_left_to_slicing_in_ordinary_networks(network: Any) -> None:
    torch.manual_seed(0)
    model = network().eval().requires_grad_(False)
    example = (torch.zeros(1, 3, 16, 16),)
    space = GenericAdapter().read(model, example)
    assert only_sliced(model, space, example) == ()
