"""Rankings against their definitions, computed another way."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from adapters.generic import GenericAdapter
from compressor.errors import DataError, UsageError
from compressor.network.data import tensors_hash
from compressor.network.proof import tell_channels_apart
from compressor.network.verify import verify_space
from compressor.refit.gates import gate_slopes
from compressor.refit.library import LayerLibrary, Source, make_libraries, make_library
from compressor.refit.ranking import RANKINGS, _agreed
from compressor.run.request import Options
from compressor.space import SearchLayer, SearchSpace
from tests import networks

EXAMPLE = (torch.zeros(1, 3, 12, 12),)
NETWORKS = [
    networks.Residual, networks.Separable, networks.Grouped, networks.Dense, networks.Flatten,
    networks.SharedModule, networks.PaddedShortcuts,
]  # fmt: skip


class Net(nn.Module):
    """Three groups: with a BatchNorm, with one in each of two producers, and with none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.a, self.norm_a = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        self.b, self.norm_b = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        self.last = nn.Conv2d(16, 16, 3, groups=4)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.first(x)))
        x = functional.relu(self.norm_a(self.a(x)) + self.norm_b(self.b(x)))
        return self.head(torch.tanh(self.last(x)).mean((2, 3)))


def images(batches: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    coarse = [torch.randn(8, 3, 6, 6, generator=generator) for _ in range(batches)]
    return [functional.interpolate(x, 12) for x in coarse]


def read(network: Any) -> tuple[nn.Module, SearchSpace]:
    torch.manual_seed(0)
    model = network()
    if isinstance(model, networks.Flatten):
        model.head[0] = nn.Linear(32 * 9, 40)
    model.eval().requires_grad_(False)
    tell_channels_apart(model)
    return model, verify_space(model, EXAMPLE, GenericAdapter().read(model, EXAMPLE))


def layer(library: LayerLibrary, name: str) -> SearchLayer:
    return next(x for x in library.space.layers if x.name == name)


def order(library: LayerLibrary, name: str) -> tuple[int, ...]:
    group = layer(library, name).group
    assert group is not None
    return group.order


def descending(scores: Tensor) -> tuple[int, ...]:
    return tuple(scores.argsort(descending=True, stable=True).tolist())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("ranking", RANKINGS)
def test_every_ranking_orders_every_layer(ranking: str, network: Any) -> None:
    model, space = read(network)
    before = tensors_hash(model.state_dict().items())
    library = make_library(model, space, EXAMPLE, images(), ranking=ranking)
    for old, new in zip(space.layers, library.space.layers, strict=True):
        if old.group and new.group:
            assert sorted(new.group.order) == sorted(old.group.order)
            assert replace(new.group, order=old.group.order) == old.group
    assert tensors_hash(model.state_dict().items()) == before
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    again = make_library(model, space, EXAMPLE, images(), ranking=ranking)
    assert again.space == library.space


def test_magnitude_is_the_adapters_own_order() -> None:
    model, space = read(Net)
    assert make_library(model, space, EXAMPLE, images(), ranking="magnitude").space == space


@torch.no_grad()
def test_activation_is_the_energy_that_each_channel_brings_to_its_readers() -> None:
    model, space = read(Net)
    library = make_library(model, space, EXAMPLE, images(), ranking="activation")
    x = functional.relu(model.norm(model.first(torch.cat(images()))))
    square = x.double().square().mean((0, 2, 3))
    energy = [c.weight.double().square().sum((0, 2, 3)) * square for c in (model.a, model.b)]
    assert order(library, "first") == descending(sum(e / e.sum() for e in energy))


@torch.no_grad()
def test_taylor_is_the_slope_of_the_loss_by_a_gate_on_the_channel() -> None:
    model, space = read(Net)
    model, data = model.double(), [x.double() for x in images()]
    found = gate_slopes(model, ["a", "b", "last"], data)
    generator = torch.Generator().manual_seed(0)
    slopes: dict[str, list[Tensor]] = {name: [] for name in found}
    for x in data:
        chances = model(x).float().softmax(1)
        drawn = torch.multinomial(chances, 1, generator=generator).flatten()
        for name, parts in slopes.items():
            parts.append(torch.stack([slope(model, name, c, x, drawn) for c in range(16)], 1))
    for name, parts in slopes.items():
        assert torch.allclose(found[name], torch.cat(parts), atol=1e-6)
    example = (EXAMPLE[0].double(),)
    library = make_library(model, space, example, data, ranking="taylor")
    total = torch.cat(slopes["a"]) + torch.cat(slopes["b"])
    assert order(library, "first") == descending(total.square().mean(0))
    # four groups of four: a unit is the same local channel of each group
    tied = torch.cat(slopes["last"]).reshape(-1, 4, 4).sum(1)
    assert order(library, "a") == descending(tied.square().mean(0))


def slope(model: nn.Module, name: str, channel: int, x: Tensor, drawn: Tensor) -> Tensor:
    """Central difference of each image's loss by a gate on one channel of what `name` reads."""
    losses = []
    for step in (1e-4, -1e-4):
        gate = torch.ones(16, 1, 1, dtype=x.dtype)
        gate[channel] += step
        handle = model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, gate=gate: (args[0] * gate,)
        )
        losses.append(functional.cross_entropy(model(x), drawn, reduction="none"))
        handle.remove()
    return (losses[0] - losses[1]) / 2e-4


def test_taylor_needs_no_logits() -> None:
    class Dense(Net):
        def forward(self, x: Tensor) -> Any:
            x = functional.relu(self.norm(self.first(x)))
            return {"map": self.a(x), "other": (self.b(x).mean((1, 2, 3)), 3)}

    torch.manual_seed(0)
    found = gate_slopes(Dense().eval(), ["a", "b"], images())
    assert {name: tuple(s.shape) for name, s in found.items()} == {"a": (16, 16), "b": (16, 16)}
    assert all(bool((s != 0).any()) for s in found.values())


def test_taylor_without_gradients_says_what_to_do() -> None:
    class Opaque(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(DataError, match="choose another ranking"):
        gate_slopes(Opaque().eval(), ["a"], images())


def test_bn_scale_is_that_of_the_norms_behind_the_producers() -> None:
    model, space = read(Net)
    library = make_library(model, space, EXAMPLE, images(), ranking="bn_scale")
    assert order(library, "first") == descending(model.norm.weight.abs())
    # a residual stream adds up what its producers bring; units are tied by the grouped reader
    both = (model.norm_a.weight.abs() + model.norm_b.weight.abs()).double().reshape(4, 4).sum(0)
    assert order(library, "a") == descending(both)


def test_where_there_is_no_norm_magnitude_decides_and_it_is_said() -> None:
    model, space = read(Net)
    told: list[str] = []
    library = make_library(
        model, space, EXAMPLE, images(), lambda e: told.append(e.note), ranking="bn_scale"
    )
    reason = "ranked by magnitude: no BatchNorm directly follows what makes its channels"
    assert [(x.name, x.reason) for x in library.unranked] == [("last", reason)]
    assert reason in told
    plain = make_library(model, space, EXAMPLE, images(), ranking="magnitude")
    assert order(library, "last") == order(plain, "last")
    assert plain.unranked == ()


def test_rankings_without_refitting() -> None:
    model, space = read(Net)
    for ranking in RANKINGS:
        with_weights = make_library(model, space, EXAMPLE, images(), ranking=ranking)
        without = make_library(model, space, EXAMPLE, images(), ranking=ranking, refit=False)
        assert without.space == with_weights.space
        assert without.consumers == {}


def test_an_unknown_ranking_names_the_choices() -> None:
    model, space = read(Net)
    said = "one of reconstruction, magnitude, activation, taylor, bn_scale, but got 'random'"
    with pytest.raises(UsageError, match=said):
        make_library(model, space, EXAMPLE, images(), ranking="random")
    with pytest.raises(UsageError, match=said):
        Options(ranking="random")


def test_nothing_is_reconstructed_without_refitting() -> None:
    assert Options().ranked_by == "reconstruction"
    assert Options(refit=False).ranked_by == "magnitude"
    assert Options(refit=False, ranking="taylor").ranked_by == "taylor"


def test_reconstruction_keeps_more_of_the_output_than_the_reverse_order() -> None:
    model, space = read(Net)
    library = make_library(model, space, EXAMPLE, images())
    at = [x.name for x in space.layers].index("first")
    architecture = tuple(1 if i == at else n - 1 for i, n in enumerate(space.sizes))
    group = layer(library, "first").group
    assert group is not None
    worst = replace(library.space.layers[at], group=replace(group, order=group.order[::-1]))
    layers = [worst if i == at else x for i, x in enumerate(library.space.layers)]
    other = replace(library, space=replace(library.space, layers=tuple(layers)))
    with torch.no_grad():
        gaps = [
            sum(float((model(x) - copy.deepcopy(lib).build(architecture)(x)).square().sum())
                for x in images())
            for lib in (library, other)
        ]  # fmt: skip
    assert gaps[0] < gaps[1]


def differing(seed: int) -> tuple[nn.Module, SearchSpace]:
    """A network of the same architecture with other weights."""
    model, space = read(Net)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model, space


def sources(*importances: float) -> list[Source]:
    """Networks with other weights each, of these importances."""
    return [
        Source(*differing(seed), EXAMPLE, images(), importance)
        for seed, importance in enumerate(importances)
    ]


@pytest.mark.parametrize("ranking", RANKINGS)
def test_several_networks_get_one_order(ranking: str) -> None:
    given = sources(1.0, 1.0, 1.0)
    libraries = make_libraries(given, ranking=ranking)
    for name in ("first", "a", "last"):
        assert len({order(library, name) for library in libraries}) == 1
    for library, source in zip(libraries, given, strict=True):
        assert library.model is source.model
    assert make_libraries([given[0]] * 2, ranking=ranking)[1].space == orders_alone(0, ranking)


@pytest.mark.parametrize("ranking", RANKINGS)
def test_a_network_of_far_greater_importance_decides(ranking: str) -> None:
    assert orders_alone(0, ranking) != orders_alone(1, ranking)
    for deciding, importances in ((0, (1e9, 1.0)), (1, (1.0, 1e9))):
        library, _ = make_libraries(sources(*importances), ranking=ranking)
        assert library.space == orders_alone(deciding, ranking)


def orders_alone(seed: int, ranking: str) -> SearchSpace:
    """The space of one of these networks in the order that it would have alone."""
    (library,) = make_libraries([sources(*[1.0] * (seed + 1))[seed]], ranking=ranking)
    return library.space


class Copies(nn.Module):
    """Four channels in two pairs of equal ones, read by weights of one size."""

    def __init__(self, pairs: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 4), nn.Linear(4, 5)
        with torch.no_grad():
            own = torch.randn(2, 6)
            self.first.weight.copy_(own[list(pairs)])
            self.first.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x))


def test_what_one_network_cannot_do_without_is_kept_for_both() -> None:
    """One of each network's pairs can go, and two units do for both: no pair of either network."""
    pairs = [(0, 0, 1, 1), (0, 1, 0, 1)]
    for seed in range(10):
        torch.manual_seed(seed)
        models = [Copies(each).eval().requires_grad_(False) for each in pairs]
        x = [torch.randn(64, 6)]
        example = (torch.zeros(1, 6),)
        read = [
            Source(m, verify_space(m, example, GenericAdapter().read(m, example)), example, x)
            for m in models
        ]
        library, _ = make_libraries(read)
        kept = set(order(library, "first")[:2])
        assert kept in ({0, 3}, {1, 2})


def test_scores_of_one_network_that_hardly_differ_keep_their_order() -> None:
    """Shares of a sum are rounded, which would make equals of them."""
    higher = torch.tensor(0.7, dtype=torch.float64)
    lower = torch.nextafter(higher, torch.zeros_like(higher))
    pairs = torch.stack([lower, higher] * 50)
    found = _agreed([(3.0, pairs)])
    assert found == (*range(1, 100, 2), *range(0, 100, 2))
