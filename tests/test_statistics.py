"""Means over channels: of those that are left, in the smaller and in the masked network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adapters.generic import GenericAdapter
from compressor.deploy.agreement import largest_difference
from compressor.deploy.export import export_base
from compressor.device.measure import Settings, create_session
from compressor.errors import ArchitectureError
from compressor.network.statistics import leaving_out
from compressor.network.structure import mask, masked, materialise
from compressor.network.verify import verify_space
from compressor.space import SearchSpace
from tests.test_identities import IMAGE, TOKENS, Net, proved


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Last(nn.Module):
    """A module over the last dimension, on channels that come second."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x.movedim(1, -1)).movedim(-1, 1)
        return out


class OwnRms(nn.Module):
    """RMSNorm as people write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class ResponseNorm(nn.Module):
    """Global response normalisation (ConvNeXt V2, section 3.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(-1, 1, width).reshape(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        norms = x.norm(p=2, dim=(2, 3), keepdim=True)
        return x + self.gamma * x * norms / (norms.mean(1, keepdim=True) + 1e-6)


STATISTICS = [
    lambda: Lambda(lambda x: x - x.mean(1, keepdim=True)),
    lambda: Lambda(lambda x: x / x.std(1, keepdim=True)),
    lambda: Lambda(lambda x: x.softmax(1)),
    lambda: Lambda(lambda x: x * x.logsumexp(1, keepdim=True)),
    lambda: Lambda(lambda x: F.normalize(x, dim=1)),
    lambda: Lambda(lambda x: x * x.sum(1, keepdim=True).sigmoid()),
    lambda: Lambda(lambda x: x * x.amax(1, keepdim=True)),
    lambda: Lambda(lambda x: F.group_norm(x, 1)),
    lambda: Lambda(lambda x: F.layer_norm(x.movedim(1, -1), (16,)).movedim(-1, 1)),
    lambda: Lambda(lambda x: F.rms_norm(x.movedim(1, -1), (16,)).movedim(-1, 1)),
    lambda: nn.GroupNorm(1, 16),
    lambda: Last(nn.LayerNorm(16)),
    lambda: Last(nn.LayerNorm(16, elementwise_affine=False)),
    lambda: Last(nn.RMSNorm(16)),
    lambda: Last(OwnRms(16)),
    lambda: ResponseNorm(16),
]


@pytest.mark.parametrize("make", STATISTICS)
def test_channels_under_a_statistic_are_choices(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = Net(make()).eval()
    space = proved(net)
    (stem,) = (x for x in space.layers if x.name == "stem")
    assert stem.group is not None
    assert stem.group.statistics
    assert SearchSpace.from_json(space.to_json()) == space
    small, batch = materialise(net, space, space.smallest), torch.randn(3, 3, 12, 12)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            want = mask(net, space, space.smallest)(batch)
            torch.testing.assert_close(small(batch), want)
    with masked(net, space, space.smallest):
        torch.testing.assert_close(net(batch), want)
    assert not torch.equal(net(batch), want)


def test_what_is_left_out_of_a_norm_is_that_of_the_rest() -> None:
    norm = nn.LayerNorm(6)
    nn.init.normal_(norm.weight)
    x, kept = torch.randn(2, 5, 6), [0, 2, 5]
    with leaving_out(norm, {("native_layer_norm@1", 2): {1, 3, 4}}):
        got = norm(x)
    want = F.layer_norm(x[..., kept], (3,), norm.weight[kept], norm.bias[kept])
    torch.testing.assert_close(got[..., kept], want)
    assert not got[..., [1, 3, 4]].any()
    torch.testing.assert_close(norm(x), F.layer_norm(x, (6,), norm.weight, norm.bias))


def test_positions_that_a_network_does_not_have_are_an_error() -> None:
    norm = nn.LayerNorm(6)
    far = leaving_out(norm, {("native_layer_norm@1", 2): {7}})
    with far, pytest.raises(ArchitectureError, match="leaves position 7 of dimension 2"):
        norm(torch.randn(2, 6))


class Block(nn.Module):
    """A transformer's block whose code derives sizes from the width that it is given."""

    def __init__(self, width: int = 16, heads: int = 4, *, scaled: bool = False) -> None:
        super().__init__()
        self.heads, self.scaled = heads, scaled
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.RMSNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * (8 * (width // self.heads) ** -0.5 if self.scaled else 2)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, tokens, width)
        x = x + self.proj(mixed)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Transformer(nn.Module):
    def __init__(self, *, scaled: bool = False) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.positions = nn.Parameter(torch.randn(1, 6, 16))
        self.blocks = nn.ModuleList([Block(scaled=scaled) for _ in range(2)])
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.positions
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x))
        return out


def test_the_width_of_a_transformer_is_a_choice_although_heads_are_cut_by_it() -> None:
    torch.manual_seed(0)
    net = Transformer().eval()
    space = proved(net, TOKENS)
    layers = {layer.name: layer for layer in space.layers}
    assert {"embed", "blocks.0.qkv", "blocks.1.mlp.0"} <= layers.keys()
    assert layers["embed"].group is not None
    held = {e.activation for e in layers["embed"].group.extents if not e.per_unit}
    assert held == {f"blocks.{i}@{call}" for i in (0, 1) for call in (1, 2)}
    some = tuple(i % size for i, size in enumerate(space.sizes))
    for architecture in (space.smallest, some):
        small, batch = materialise(net, space, architecture), torch.randn(3, 6, 8)
        torch.testing.assert_close(small(batch), mask(net, space, architecture)(batch))


def test_a_graph_with_normalised_trunks_is_sliced() -> None:
    torch.manual_seed(0)
    net = Transformer().eval()
    space = proved(net, TOKENS)
    graph = export_base(net, TOKENS)
    for architecture in (space.smallest, tuple(size // 2 for size in space.sizes)):
        session = create_session(graph.slice(space, architecture), Settings())
        inputs = [(torch.randn(n, 6, 8),) for n in (1, 3)]
        small = materialise(net, space, architecture)
        assert largest_difference(small, session, inputs, 1e-4) <= 1e-4


def test_a_scale_that_the_code_derives_from_a_width_freezes_it() -> None:
    torch.manual_seed(0)
    net = Transformer(scaled=True).eval()
    for block in net.blocks:
        nn.init.normal_(block.qkv.weight, std=0.02)  # what hides a wrong scale
    space = verify_space(net, TOKENS, GenericAdapter().read(net, TOKENS))
    assert "embed" not in {layer.name for layer in space.layers}
    (reason,) = (f.reason for f in space.frozen if f.name == "embed")
    assert "differs from the masked one's" in reason


def test_of_two_trunks_only_the_one_with_a_derived_scale_is_frozen() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Transformer(scaled=True), nn.Linear(3, 8), Transformer()).eval()
    space = GenericAdapter().read(net, TOKENS)
    assert [f.name for f in space.frozen if "differs from the masked" in f.reason] == ["0.embed"]
    layers = {layer.name: layer for layer in space.layers}
    assert "0.embed" not in layers
    assert len(layers["2.embed"].choices) > 2
    proven = verify_space(net, TOKENS, space)
    assert {layer.name for layer in proven.layers} == layers.keys()


def test_a_statistic_of_parts_of_several_decisions_leaves_out_what_each_takes() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
            self.norm, self.head = nn.GroupNorm(1, 24), nn.Conv2d(24, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.norm(torch.cat([self.one(x), self.two(x)], 1)))
            return out.mean((2, 3))

    torch.manual_seed(0)
    net = Two().eval()
    space = proved(net)
    assert {layer.name for layer in space.layers} == {"one", "two"}
    left_out = space.left_out(space.smallest)["native_group_norm@1", 1]
    assert len([p for p in left_out if p < 8]) == 6
    assert len([p for p in left_out if p >= 8]) == 14
    small = materialise(net, space, space.smallest)
    torch.testing.assert_close(small(*IMAGE), mask(net, space, space.smallest)(*IMAGE))
