"""Residual blocks that the search may leave out: found, proved, counted, and scored once."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from adapters.blocks import find_blocks
from adapters.generic import GenericAdapter
from compressor.cost import Limit, layer_control, madds_table, params_table, touched_madds
from compressor.errors import ArchitectureError, UsageError
from compressor.network.adapter import find_adapter
from compressor.network.blocks import Dropped
from compressor.network.counting import count
from compressor.network.structure import mask, masked, materialise
from compressor.network.verify import verify_space
from compressor.search.layer_nas import layer_nas
from compressor.search.settings import SearchSettings
from compressor.space import Block, Choice, SearchLayer, SearchSpace
from compressor.testing.contract import AdapterContract
from tests.networks import PaddedShortcuts, conv


class Residuals(nn.Module):
    """A stem of 8 channels, two residual blocks whose inner width is 16, and a head; 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1, bias=False)
        self.blocks = nn.Sequential(_Plain(), _Plain())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class _Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.two = nn.Conv2d(16, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(functional.relu(self.one(x)))


class Inverted(nn.Module):
    """Inverted residuals: one that changes the width, and two that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16, s=2)
        self.body = nn.Sequential(_Bottleneck(16, 24), _Bottleneck(24, 24), _Bottleneck(24, 24))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class _Bottleneck(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        wide = 2 * i
        self.conv = nn.Sequential(
            conv(i, wide, 1), conv(wide, wide, 5, g=wide),
            nn.Conv2d(wide, o, 1, bias=False), nn.BatchNorm2d(o),
        )  # fmt: skip
        self.sums = i == o

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.sums else self.conv(x)


class Transformer(nn.Module):
    """Patches, two pre-norm blocks of attention and a perceptron, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.blocks = nn.Sequential(_PreNorm(), _PreNorm())
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(n, tokens, 32))


class _PreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(32), _Attention(), nn.LayerNorm(32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = x + scale * self.attn(self.norm1(x))
        return x + scale * self.mlp(self.norm2(x))


NETWORKS = {"basic": PaddedShortcuts, "inverted": Inverted, "transformer": Transformer}
EXAMPLE = (torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)),)


def _built(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def _space(model: nn.Module, example: tuple[Tensor, ...] = EXAMPLE) -> SearchSpace:
    return verify_space(model, example, GenericAdapter(blocks=True).read(model, example))


def _names(model: nn.Module, example: tuple[Tensor, ...] = EXAMPLE) -> list[str]:
    return [layer.name for layer in find_blocks(model, example).layers]


def test_blocks_that_keep_the_shape_are_found_and_those_that_downsample_are_not() -> None:
    assert _names(_built(PaddedShortcuts)) == ["blocks.0", "blocks.2"]
    assert _names(_built(Inverted)) == ["body.1", "body.2"]
    assert _names(_built(Transformer)) == ["blocks.0", "blocks.1"]


def test_a_module_without_a_shortcut_is_no_block() -> None:
    found = find_blocks(_built(_Straight), EXAMPLE)
    assert not found.layers
    assert "none can be dropped" in found.frozen[0].reason


class _Straight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(3, 8), conv(8, 8)
        self.idle = nn.Sequential(nn.Identity(), nn.Dropout())

    def forward(self, x: Tensor) -> Tensor:
        return self.idle(self.two(self.one(x)))


def test_a_block_that_runs_twice_is_no_choice() -> None:
    class Twice(Residuals):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(self.blocks[0](self.blocks[0](x)).mean((2, 3)))

    assert not _names(_built(Twice))


def test_a_block_that_shares_its_weights_is_kept_with_the_reason() -> None:
    model = _built(Residuals)
    model.blocks[1].one.weight = model.blocks[0].one.weight  # type: ignore[union-attr,index]
    found = find_blocks(model, EXAMPLE)
    assert not found.layers
    assert [f.name for f in found.frozen] == ["blocks.0", "blocks.1"]
    assert "'blocks.1.one' holds a tensor of it as well" in found.frozen[0].reason


def test_a_block_with_a_tensor_by_keyword_is_no_choice_and_one_with_a_number_is() -> None:
    class Told(Transformer):
        def forward(self, x: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = self.blocks[1](self.blocks[0](x, scale=x.new_ones(())), 0.5)
            return self.head(self.norm(x).mean(1))

    model = _built(Told)
    assert _names(model) == ["blocks.1"]
    space = _space(model)
    small = materialise(model, space, space.smallest)
    assert isinstance(small.get_submodule("blocks.1"), Dropped)
    assert small(*EXAMPLE).shape == (2, 10)


def test_a_block_that_is_called_by_keyword_is_no_choice() -> None:
    class Named(Transformer):
        def forward(self, x: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            return self.head(self.norm(self.blocks[1](x=self.blocks[0](x=x))).mean(1))

    assert not _names(_built(Named))


def test_an_example_of_zeros_shows_blocks_as_well() -> None:
    assert _names(_built(Residuals), (torch.zeros(1, 3, 4, 4),)) == ["blocks.0", "blocks.1"]
    assert not _names(_built(_Straight), (torch.zeros(1, 3, 4, 4),))


def test_without_the_option_there_are_no_blocks() -> None:
    space = GenericAdapter().read(_built(PaddedShortcuts), EXAMPLE)
    assert not any(layer.block for layer in space.layers)
    assert space.canonical(space.smallest) == space.smallest


def test_costs_are_those_counted_by_hand() -> None:
    model, example = _built(Residuals), (torch.randn(1, 3, 4, 4),)
    space = _space(model, example)
    places = {layer.name: i for i, layer in enumerate(space.layers)}
    assert set(places) == {"stem", "blocks.0", "blocks.0.one", "blocks.1", "blocks.1.one"}
    counted = count(model, example)
    madds, params = madds_table(space, counted.tensors), params_table(space, counted.tensors)
    block = 16 * (8 * 16 * 9 + 16 * 8)  # positions, both weights
    outside = 16 * 3 * 8 + 8 * 5
    assert madds(space.original) == outside + 2 * block
    one = list(space.original)
    one[places["blocks.0"]] = 0
    assert madds(tuple(one)) == outside + block
    assert params(tuple(one)) == 24 + 1280 + 45
    half = list(one)
    half[places["blocks.1.one"]] = space.layers[places["blocks.1.one"]].choices.index(Choice(8))
    half[places["blocks.0.one"]] = 0  # inside of the block that is left out
    assert madds(tuple(half)) == outside + block // 2
    layer = space.layers[places["blocks.0"]]
    assert touched_madds([layer], counted.terms) == block
    assert layer_control(madds, space)[places["blocks.0"]] == block
    assert touched_madds(space.layers, counted.terms) == outside + 2 * block


@pytest.mark.parametrize("kind", NETWORKS)
def test_verified_spaces_keep_their_blocks(kind: str) -> None:
    space = _space(_built(NETWORKS[kind]))
    assert sum(layer.block is not None for layer in space.layers) == 2
    assert not {"blocks.0", "blocks.2", "body.1"} & {f.name for f in space.frozen}


@pytest.mark.parametrize("kind", NETWORKS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_tables_are_exact_and_pruned_is_masked_for_any_architecture(
    kind: str, data: st.DataObject
) -> None:
    model, space, madds, params = _read(kind)
    architecture = tuple(data.draw(st.integers(0, size - 1)) for size in space.sizes)
    small = materialise(model, space, architecture)
    counted = count(small, EXAMPLE)
    assert (counted.madds, counted.params) == (madds(architecture), params(architecture))
    same = space.canonical(architecture)
    assert (madds(same), params(same)) == (madds(architecture), params(architecture))
    with torch.no_grad():
        got = small(*EXAMPLE)
        torch.testing.assert_close(got, mask(model, space, architecture)(*EXAMPLE))
        torch.testing.assert_close(materialise(model, space, same)(*EXAMPLE), got)


_READ: dict[str, tuple] = {}  # type: ignore[type-arg]


def _read(kind: str) -> tuple:  # type: ignore[type-arg]
    if kind not in _READ:
        model = _built(NETWORKS[kind])
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
        space, counted = _space(model), count(model, EXAMPLE)
        madds = madds_table(space, counted.tensors, products=counted.products)
        _READ[kind] = model, space, madds, params_table(space, counted.tensors)
    return _READ[kind]


def test_a_masked_network_gets_its_numbers_back_exactly() -> None:
    model, space, *_ = _read("basic")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with masked(model, space, space.smallest):
        assert not model.get_parameter("blocks.0.conv1.weight").any()
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_parameters_outside_of_a_dropped_block_keep_their_names() -> None:
    model, space, *_ = _read("basic")
    small = materialise(model, space, _dropping(space, "blocks.0"))
    names = {n for n, _ in model.named_parameters() if not n.startswith("blocks.0.")}
    assert {n for n, _ in small.named_parameters()} == names


def _dropping(space: SearchSpace, *names: str) -> tuple[int, ...]:
    pairs = zip(space.layers, space.original, strict=True)
    return tuple(0 if layer.name in names else option for layer, option in pairs)


def test_what_follows_a_dropped_block_may_work_in_place() -> None:
    x = torch.ones(2)
    Dropped()(x, 3, mask=None).add_(1)
    assert x.tolist() == [1, 1]


def test_another_model_has_no_such_block() -> None:
    model, space, *_ = _read("basic")
    other = SearchSpace((SearchLayer("x", ("x",), _CHOICES, block=Block("x")),))
    with pytest.raises(ArchitectureError, match="the block 'x'"):
        materialise(model, other, (0,))
    del space


_CHOICES = (Choice(kept=False), Choice(kept=True))


def test_a_space_with_blocks_survives_json_and_one_without_is_written_as_before() -> None:
    _, space, *_ = _read("transformer")
    assert SearchSpace.from_json(space.to_json()) == space
    plain = GenericAdapter().read(_built(Residuals), EXAMPLE).to_json()
    assert all("block" not in layer for layer in plain["layers"])
    assert all(len(choice) == 2 for layer in plain["layers"] for choice in layer["choices"])


@pytest.mark.parametrize("choices", [[[None, None, True], [None, None, False]], [[None, None]]])
def test_a_block_is_dropped_or_kept_and_nothing_else(choices: list[object]) -> None:
    _, space, *_ = _read("basic")
    data = space.to_json()
    block = next(layer for layer in data["layers"] if "block" in layer)
    block["choices"] = choices
    with pytest.raises(ArchitectureError, match="dropped or kept"):
        SearchSpace.from_json(data)


def test_layers_inside_of_a_dropped_block_are_hidden_and_those_of_the_trunk_are_not() -> None:
    model = _built(Residuals)
    space = _space(model, (torch.randn(1, 3, 4, 4),))
    names = [layer.name for layer in space.layers]
    hidden = dict(zip(names, space.hidden_by, strict=True))
    assert hidden["blocks.0.one"] == (names.index("blocks.0"),)
    assert hidden["stem"] == hidden["blocks.0"] == ()
    smallest = dict(zip(names, space.canonical(space.smallest), strict=True))
    original = dict(zip(names, space.original, strict=True))
    assert smallest["blocks.0.one"] == original["blocks.0.one"]
    assert smallest["stem"] == 0
    assert space.describe(space.smallest)["blocks.0"] == "dropped"
    assert space.describe(space.original)["blocks.0"] == "kept"


@pytest.mark.parametrize("strategy", ["guided", "published"])
def test_one_network_is_never_scored_twice(strategy: str) -> None:
    _, space, madds, _ = _read("basic")
    asked: list[tuple[int, ...]] = []

    def score(architecture: tuple[int, ...]) -> float:
        asked.append(architecture)
        return sum(architecture) + random.Random(str(architecture)).random()  # noqa: S311

    limit = Limit(madds, 0.6 * madds(space.original))
    found = layer_nas(
        sizes=space.sizes, limits=[limit], score=score, evaluations=60,
        settings=SearchSettings(strategy=strategy), hidden_by=space.hidden_by,  # type: ignore[arg-type]
    )  # fmt: skip
    assert len(set(asked)) == len(asked) > 20
    assert all(space.canonical(a) == a for a in asked)
    assert any(space.dropped(a) for a in asked)
    assert found.best.costs["madds"] <= limit.high


def test_an_adapter_that_finds_no_blocks_is_not_asked_for_them() -> None:
    assert find_adapter("generic", drop_blocks=True) == GenericAdapter(blocks=True)
    with pytest.raises(UsageError, match="dropping_blocks"):
        find_adapter("tests.test_blocks:NoBlocks", drop_blocks=True)


class NoBlocks:
    """An adapter of somebody's."""

    def read(self, model: nn.Module, example: tuple[Tensor, ...]) -> SearchSpace:
        """Finds nothing."""
        del model, example
        return SearchSpace(())


class _Blocks(AdapterContract):
    def adapter(self) -> GenericAdapter:
        return GenericAdapter(blocks=True)

    def example(self) -> tuple[Tensor, ...]:
        return EXAMPLE


class TestInverted(_Blocks):
    """Blocks whose kernels and widths are choices too."""

    def model(self) -> nn.Module:
        return _built(Inverted)


class TestTransformer(_Blocks):
    """Blocks with products between activations."""

    def model(self) -> nn.Module:
        return _built(Transformer)
