"""Channels followed through networks whose groups can be told by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adapters.dependency_groups import read_groups
from adapters.generic import GenericAdapter
from adapters.groups import RawGroup, unit_positions, units
from adapters.traced_groups import trace_groups
from compressor.cost import madds_table
from compressor.coupling import Role
from compressor.errors import AdapterError
from compressor.network.counting import count
from compressor.network.structure import masked, materialise
from compressor.network.verify import verify_space
from compressor.space import SearchSpace
from tests import networks

IMAGE = (torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)


class Net(nn.Module):
    """Two convolutions and a head around whatever `between` does."""

    def __init__(self, between, width=16, after=None, flat=1):
        super().__init__()
        self.stem, self.between = nn.Conv2d(3, width, 3, padding=1), between
        self.middle = nn.Conv2d(after or width, 12, 3, padding=1)
        self.head = nn.Linear(12 * flat, 5)

    def forward(self, x):
        return self.head(self.middle(self.between(self.stem(x))).mean((2, 3)))


def free(net: nn.Module, example: tuple[Tensor, ...] = IMAGE) -> dict[str, list[int]]:
    """For each tensor that makes channels which can be cut: width and channels for each unit."""
    found = {}
    for group in trace_groups(net, example):
        makers = [
            m.tensor for m in group.members if m.role is Role.PRODUCED and "weight" in m.tensor
        ]
        if not group.problem and makers:
            found[min(makers)] = [group.width, group.per_unit]
    return found


def reasons(net: nn.Module, example: tuple[Tensor, ...] = IMAGE) -> dict[str, str]:
    return {g.modules[0]: g.problem for g in trace_groups(net, example) if g.problem}


def proved(net: nn.Module, example: tuple[Tensor, ...] = IMAGE) -> SearchSpace:
    """The search layers, none of which the verification had to freeze."""
    described = GenericAdapter().read(net, example)
    space = verify_space(net, example, described)
    assert [x.name for x in space.layers] == [x.name for x in described.layers]
    return space


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("between", "after", "stem"),
    [
        (lambda x: x.relu() * 2, 16, [16, 1]),
        (lambda x: F.channel_shuffle(x, 4), 16, [16, 4]),
        (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), 16, [16, 2]),
        (lambda x: torch.cat((x, x), 1), 32, [16, 1]),
        (lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2), 16, [16, 1]),
        (lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), 16, [16, 1]),
        (lambda x: x.flatten(2).unflatten(2, (16, 16)), 16, [16, 1]),
        (lambda x: F.pixel_shuffle(x, 2), 4, [16, 4]),
        (lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(), 16, [16, 1]),
        (lambda x: x + torch.roll(x, 1, 2), 16, [16, 1]),
        (lambda x: F.pad(x, (1, 1, 1, 1)), 16, [16, 1]),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), 16, [16, 1]),
        (lambda x: x - x.mean((2, 3), keepdim=True), 16, [16, 1]),
        (lambda x: F.group_norm(x, 4), 16, [16, 4]),
        (lambda x: torch.cat(x.split(8, 1)[::-1], 1), 16, [16, 2]),
        (lambda x: x.view(1, 4, 4, 16, 16).transpose(1, 2).reshape(1, 16, 16, 16), 16, [16, 4]),
    ],
)
def test_what_stands_or_falls_together(between, after, stem):
    torch.manual_seed(0)
    net = Net(Lambda(between), after=after).eval()
    assert free(net)["stem.weight"] == stem
    space = proved(net)
    assert any(layer.name == "stem" for layer in space.layers)


@pytest.mark.parametrize(
    ("between", "after", "reason"),
    [
        (lambda x: x[:, :8], 8, "cut at fixed positions"),
        (lambda x: x + torch.linspace(0, 1, 16).reshape(1, 16, 1, 1), 16, "cannot be cut"),
        (lambda x: x * x.cumsum(1), 16, "cumsum mixes its channels"),
        (lambda x: F.pad(x, (0, 0, 0, 0, 0, 4)), 20, ""),
        (lambda x: x.flip(1) + x, 16, ""),
        (lambda x: F.glu(x, 1), 8, ""),
        (lambda x: F.pixel_unshuffle(x, 2), 64, ""),
        (lambda x: x * x.argmax(1, keepdim=True), 16, "argmax mixes its channels"),
        (lambda x: x.sort(1).values, 16, "sort mixes its channels"),
        (lambda x: torch.zeros(1, 20, 16, 16).index_copy_(1, torch.arange(16), x), 20, "written"),
        (lambda x: torch.fft.fft(x, dim=1).real, 16, "fft_r2c mixes its channels"),
    ],
)
def test_what_cannot_be_cut_says_why(between, after, reason):
    torch.manual_seed(0)
    net = Net(Lambda(between), after=after).eval()
    assert reason in reasons(net).get("stem", "")
    proved(net)  # whatever is left is right


def test_groups_are_those_of_torch_pruning_where_that_can_trace():
    for net in (networks.Separable(), networks.LargeKernels()):
        assert signatures(trace_groups(net, IMAGE)) == signatures(read_groups(net, IMAGE))


def signatures(groups: list[RawGroup]) -> set[frozenset[tuple[str, int, str]]]:
    """What each group that can be cut touches, with the number of units."""
    found = set()
    for group in groups:
        read = any(m.role is Role.CONSUMED for m in group.members)
        if not group.problem and read:
            tied = units(group)
            for member in group.members:
                assert unit_positions(member, tied)
            keys = {(m.tensor, m.dim, m.role.value) for m in group.members}
            found.add(frozenset({("units", len(tied), ""), *keys}))
    return found


class Attention(nn.Module):
    """Self-attention as it is written by hand, and an MLP, around a trunk without normalisation."""

    def __init__(self, width=16, heads=4, free_width=True):
        super().__init__()
        self.heads, self.qkv = heads, nn.Linear(width, 3 * width)
        self.project, self.up = nn.Linear(width, width), nn.Linear(width, 32)
        self.down, self.embed = nn.Linear(32, width), nn.Linear(8, width)
        self.head, self.free_width = nn.Linear(width, 3), free_width

    def forward(self, x):
        x = self.embed(x)
        n, tokens, width = x.shape
        size = -1 if self.free_width else width // self.heads
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        x = x + self.project(attended.transpose(1, 2).reshape(n, tokens, -1))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1))


TOKENS = (torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0)),)


def test_parts_of_given_sizes_are_cut_each_alone():
    torch.manual_seed(0)
    net = Net(Lambda(lambda x: torch.cat(x.split([4, 12], 1)[::-1], 1))).eval()
    widths = sorted(x.group.width for x in proved(net).layers if x.group and "stem" in x.modules)
    assert widths == [4, 12]


@pytest.mark.parametrize("free_width", [True, False])
def test_heads_go_as_a_whole(free_width):
    torch.manual_seed(0)
    net = Attention(free_width=free_width).eval()
    found = free(net, TOKENS)
    assert found["qkv.weight"] == [48, 12]  # of each of 4 heads 4 queries, keys and values
    assert found["up.weight"] == [32, 1]
    assert found["down.weight"] == [16, 1]  # with `embed` and `project`: the trunk
    space = verify_space(net, TOKENS, GenericAdapter().read(net, TOKENS))
    heads = next(x for x in space.layers if x.name == "qkv")
    products = {e.activation for e in heads.group.extents if "product" in e.activation}
    assert len(products) == 2


def test_the_code_is_told_how_many_heads_are_left_at_any_batch():
    torch.manual_seed(0)
    net = Attention(free_width=False).eval()
    space = verify_space(net, TOKENS, GenericAdapter().read(net, TOKENS))
    assert {layer.name for layer in space.layers} == {"embed", "qkv", "up"}
    small = materialise(net, space, space.smallest)
    inputs = torch.randn(3, 6, 8)
    with masked(net, space, space.smallest):
        want = net(inputs)
    torch.testing.assert_close(small(inputs), want, rtol=1e-4, atol=1e-5)


def test_multiply_adds_between_activations_shrink_with_the_heads():
    torch.manual_seed(0)
    net = Attention().eval()
    space, counted = proved(net, TOKENS), count(net, TOKENS)
    table = madds_table(space, counted.tensors, products=counted.products)
    for architecture in (space.original, space.smallest):
        small = materialise(net, space, architecture)
        assert table(architecture) == count(small, TOKENS).madds


@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_own_attention_loses_heads(batch_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(24, 4, 32, batch_first=batch_first)
    net = nn.Sequential(nn.Linear(8, 24), layer, nn.Linear(24, 3)).eval()
    space = proved(net, TOKENS)
    assert {"1.self_attn", "1.linear1"} <= {x.name for x in space.layers}
    small = materialise(net, space, space.smallest)
    assert small[1].self_attn.in_proj_weight.shape[0] < 72
    small.train()(*TOKENS)  # and it can be trained


class Grouped(nn.Module):
    """Grouped-query attention with rotary embeddings: 4 heads of queries read 2 of keys."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 32), nn.Linear(8, 16), nn.Linear(8, 16)
        self.out = nn.Linear(32, 5)

    def forward(self, x):
        n, tokens, _ = x.shape
        q = turned(self.q(x).view(n, tokens, 4, 8).transpose(1, 2))
        k = turned(self.k(x).view(n, tokens, 2, 8).transpose(1, 2))
        v = self.v(x).view(n, tokens, 2, 8).transpose(1, 2)
        k, v = (t[:, :, None].expand(n, 2, 2, tokens, 8).reshape(n, 4, tokens, 8) for t in (k, v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1)


def turned(x):
    angles = torch.arange(x.shape[-2])[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001]).repeat(2)
    half = x.shape[-1] // 2
    return x * angles.cos() + torch.cat((-x[..., half:], x[..., :half]), -1) * angles.sin()


def test_keys_and_values_that_several_heads_read_go_with_all_of_them():
    torch.manual_seed(0)
    (layer,) = proved(Grouped(), TOKENS).layers
    assert set(layer.modules) == {"q", "k", "v", "out"}
    assert len(layer.group.order) == 2


class Turned(nn.Module):
    """Attention whose queries are turned by angles in buffers, but those of the first tokens."""

    def __init__(self, first, halves):
        super().__init__()
        self.embed, self.out, self.first, self.halves = (
            nn.Linear(8, 12),
            nn.Linear(32, 12),
            first,
            halves,
        )
        self.qkv, self.head = nn.Linear(12, 96), nn.Linear(12, 3)
        self.register_buffer("sin", torch.randn(6 - first, 8))
        self.register_buffer("cos", torch.randn(6 - first, 8))

    def turn(self, x):
        one, two = x.chunk(2, -1) if self.halves == "chunk" else (x[..., :4], x[..., 4:])
        return x * self.cos + torch.cat((-two, one), -1) * self.sin

    def forward(self, x):
        x = self.embed(x)
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = (
            torch.cat((t[:, :, : self.first], self.turn(t[:, :, self.first :])), 2) for t in (q, k)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.out(y)).mean(1))


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("halves", ["chunk", "slices"])
def test_heads_that_are_turned_by_the_same_angles_are_cut_as_a_whole(first, halves):
    """Also where no token comes first, and an empty tensor is put before the others."""
    torch.manual_seed(0)
    layers = {layer.name: layer for layer in proved(Turned(first, halves), TOKENS).layers}
    assert layers.keys() == {"embed", "qkv"}
    assert set(layers["qkv"].modules) == {"qkv", "out"}
    assert len(layers["qkv"].group.order) == 4


def test_one_head_alone_is_kept():
    torch.manual_seed(0)
    problems = reasons(Attention(heads=1), TOKENS)
    assert "product of activations" in problems["qkv"]


class Mixer(nn.Module):
    """Mixes tokens and channels in turns: an element stands for a token and for a channel."""

    def __init__(self):
        super().__init__()
        self.embed, self.tokens, self.back = nn.Linear(8, 16), nn.Linear(6, 24), nn.Linear(24, 6)
        self.up, self.down, self.head = nn.Linear(16, 20), nn.Linear(20, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.back(self.tokens(x.transpose(1, 2)).relu()).transpose(1, 2)
        return self.head((x + self.down(self.up(x).relu())).mean(1))


def test_an_element_may_stand_for_a_token_and_for_a_channel():
    torch.manual_seed(0)
    example = (torch.randn(1, 6, 8),)
    assert free(Mixer(), example).keys() == {"tokens.weight", "up.weight", "down.weight"}
    # what the tokens cost depends on the channels
    assert {layer.name for layer in proved(Mixer(), example).layers} == {"embed", "tokens", "up"}


def test_an_operator_that_fails_on_identities_is_an_error_of_the_adapter(monkeypatch):
    def fails(*_: object) -> None:
        raise ZeroDivisionError("somewhere")

    monkeypatch.setattr("adapters.identities.apply", fails)
    with pytest.raises(AdapterError, match="cannot be followed"):
        trace_groups(networks.Separable(), IMAGE)
