"""What the generic adapter offers, what it freezes, and why."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from adapters.forward_pass import read_run
from adapters.generic import GenericAdapter
from compressor.errors import DataError, UsageError
from compressor.network.adapter import find_adapter
from compressor.network.structure import materialise
from compressor.network.verify import verify_space
from compressor.space import SearchSpace
from tests import networks
from tests.vision import torchvision

IMAGE = (torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3)),)


def read(net: nn.Module, example: tuple[Tensor, ...] = IMAGE) -> SearchSpace:
    return GenericAdapter().read(net.eval(), example)


def proved(net: nn.Module, example: tuple[Tensor, ...] = IMAGE) -> SearchSpace:
    return verify_space(net, example, read(net, example))


def reasons(space: SearchSpace) -> dict[str, str]:
    return {f.name: f.reason for f in space.frozen}


def names(space: SearchSpace) -> list[str]:
    return [layer.name for layer in space.layers]


def widths(space: SearchSpace) -> dict[str, list[int | None]]:
    return {x.name: [c.channels for c in x.choices] for x in space.layers}


@given(st.integers(1, 4096), st.integers(1, 64))
def test_widths(units: int, per_unit: int) -> None:
    width = units * per_unit
    found = GenericAdapter().widths(width, per_unit)
    assert found == sorted(set(found))
    assert found[-1] == width
    assert found[0] * 8 >= width
    assert all(w % per_unit == 0 for w in found)
    assert len(found) <= GenericAdapter().most_widths + 2
    assert len(found) > 1 or units == 1 or width < 32
    if len(found) > 1 and width >= 32 and math.lcm(8, per_unit) < width:
        assert all(w % 8 == 0 for w in found[1:-1])
        assert found[0] % 4 == 0


@pytest.mark.parametrize(
    ("width", "per_unit", "want"),
    [
        (64, 1, [8, 16, 24, 32, 40, 48, 56, 64]),
        (16, 1, [2, 4, 8, 12, 16]),
        (4, 1, [1, 2, 3, 4]),
        (1, 1, [1]),
        (24, 2, [4, 8, 12, 16, 20, 24]),
        (20, 1, [4, 8, 12, 16, 20]),
        (32, 12, [12, 24, 32]),
    ],
)
def test_widths_by_hand(width: int, per_unit: int, want: list[int]) -> None:
    assert GenericAdapter().widths(width, per_unit) == want


def test_the_output_layer_is_frozen() -> None:
    assert "they are its output" in reasons(read(networks.Residual()))["head"]


def test_coupled_layers_are_one_decision_in_forward_order() -> None:
    space = proved(networks.Residual())
    assert names(space) == ["stem.0", "a1.0", "short", "b1.0"]
    assert set(space.layers[0].modules) >= {"stem.0", "a2", "a1.0", "short", "b1.0"}
    assert set(space.layers[2].modules) == {"short", "b2", "head"}


def test_forward_order_is_not_the_order_of_definition() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(24, 5)
            self.second, self.first = networks.conv(16, 24), networks.conv(3, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(x)).mean((2, 3)))

    net = Backwards()
    assert names(proved(net)) == ["first.0", "second.0"]
    order = read_run(net, IMAGE).order
    assert order["first.0"] < order["second.0"] < order["head"]


def test_tied_weights_are_frozen() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.b(torch.relu(self.a(x)))))

    space = proved(Tied(), (torch.randn(1, 8),))
    assert space.layers == ()
    assert "is the same tensor as" in reasons(space)["a"]


def test_groups_of_a_groupnorm_go_as_a_whole() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 4, 3), nn.Flatten()
    )
    space = proved(net)
    (layer,) = space.layers
    assert layer.group is not None
    assert layer.group.per_unit == 4
    small = materialise(net, space, space.smallest)
    assert small[0].weight.shape[0] < 16
    small(torch.randn(2, 3, 8, 8))


def test_a_layer_that_is_too_narrow_is_frozen() -> None:
    net = nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Conv2d(1, 8, 3), nn.Flatten())
    assert "too few to choose from" in reasons(read(net))["0"] or (
        "only be removed together" in reasons(read(net))["0"]
    )


def test_parts_that_do_not_run_in_evaluation_are_named() -> None:
    class Auxiliary(networks.Separable):
        def __init__(self) -> None:
            super().__init__()
            self.auxiliary = nn.Linear(48, 10)

        def forward(self, x: Tensor) -> Any:
            features = self.body(x).mean((2, 3))
            if self.training:
                return self.head(features), self.auxiliary(features)
            return self.head(features)

    net = Auxiliary().train()
    space = verify_space(net, IMAGE, GenericAdapter().read(net, IMAGE))
    assert net.training
    assert "is not called in evaluation mode" in reasons(space)["auxiliary"]
    # its input would no longer fit if the layer before it were cut
    small = materialise(net, space, space.smallest).eval()
    assert small(*IMAGE).shape == (1, 10)


class Shuffled(nn.Module):
    """Half of the channels passes by, then the halves are interleaved (ShuffleNet V2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = networks.conv(3, 16, 5), networks.conv(8, 8)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, dim=1)
        x = torch.cat((a, self.branch(b)), dim=1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x.mean((2, 3)))


def test_channel_shuffle_ties_the_halves() -> None:
    torch.manual_seed(0)
    space = proved(Shuffled())
    stem = next(layer for layer in space.layers if layer.name == "stem.0")
    assert {c.channels for c in stem.choices} == {2, 4, 8, 12, 16}
    assert stem.group is not None
    assert stem.group.per_unit == 2


def test_shufflenet_can_be_cut_inside_its_blocks() -> None:
    torch.manual_seed(0)
    net = torchvision().models.get_model("shufflenet_v2_x0_5", weights=None)
    space = proved(net, (torch.randn(1, 3, 32, 32),))
    assert {"conv1.0", "stage2.0.branch2.0", "stage4.3.branch2.0"} <= set(names(space))


def test_kernels_remain_where_channels_cannot_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch_pruning  # noqa: PLC0415

    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("as in ShuffleNet")

    monkeypatch.setattr(torch_pruning.DependencyGraph, "build_dependency", fails)
    monkeypatch.setattr("adapters.traced_groups.follow", fails)
    space = proved(networks.LargeKernels())
    assert names(space) == ["stem.0", "depthwise.0", "dense", "dilated"]
    assert list(reasons(space)) == ["all channels"]


class Sequence(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.embed, self.inner, self.head = nn.Linear(8, 16), inner, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(self.embed(x))
        return self.head((x[0] if isinstance(x, tuple) else x).mean(1))


def test_what_cannot_be_cut_is_named() -> None:
    net = Sequence(nn.LSTM(16, 16, batch_first=True))
    space = proved(net, (torch.randn(2, 5, 8),))
    assert "which is kept whole" in reasons(space)["embed"]
    assert names(space) == []


def test_a_transformer_is_cut_in_width_heads_and_feed_forward_part() -> None:
    net = Sequence(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True))
    space = proved(net, (torch.randn(2, 5, 8),))
    assert names(space) == ["embed", "inner.self_attn", "inner.linear1"]


def test_large_kernels() -> None:
    space = proved(networks.LargeKernels())
    layers = {layer.name: layer for layer in space.layers}
    # the depthwise convolution and the stem share channels, so their kernels decide alone
    assert {c.kernel for c in layers["stem.0:kernel"].choices} == {3, 5, 7}
    assert {c.kernel for c in layers["depthwise.0"].choices} == {3, 5, 7}
    both = layers["dense"].choices
    assert {c.kernel for c in both} == {3, 5}
    assert len(both) == 2 * len({c.channels for c in both})
    assert (both[0].channels, both[0].kernel) == (min(c.channels or 0 for c in both), 3)
    assert (both[-1].channels, both[-1].kernel) == (24, 5)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 8, 5),  # a smaller kernel would need negative padding
        nn.Conv2d(3, 8, 4, padding=2),
        nn.Conv2d(3, 8, (5, 1), padding=(2, 0)),
        nn.Conv2d(3, 8, 5, padding=2, padding_mode="reflect"),
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ConvTranspose2d(3, 8, 5, padding=2),
    ],
)
def test_kernels_that_are_not_cropped(conv: nn.Module) -> None:
    space = read(nn.Sequential(conv, nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Flatten()))
    assert not any(layer.kernel for layer in space.layers)


def test_grouped_convolutions_tie_units() -> None:
    space = proved(networks.Grouped())
    per_unit = {x.name: x.group.per_unit for x in space.layers if x.group}
    # `one` feeds 2 groups; `two` makes 2 and feeds 4 groups; `three` makes 4 groups
    assert per_unit == {"one.0": 2, "two.0": 4, "three.0": 4, "four.0": 1}
    small = materialise(networks.Grouped().eval(), space, space.smallest)
    assert (small.two[0].groups, small.three[0].groups) == (2, 4)
    assert widths(space)["two.0"][:2] == [4, 8]


def test_a_depthwise_multiplier_is_cut_rightly_or_frozen() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=8), nn.ReLU(), nn.Conv2d(16, 4, 1),
        nn.Flatten(),
    )  # fmt: skip
    space = proved(net)
    assert all(layer.name not in {"0"} or layer.group for layer in space.layers)
    small = materialise(net, space, space.smallest)
    assert small(*IMAGE).shape == net(*IMAGE).shape


def test_transposed_convolutions() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.ConvTranspose2d(3, 16, 2, 2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 2, 3),
    )  # fmt: skip
    assert names(proved(net)) == ["0", "3"]


def test_raw_parameters() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)
            self.gamma = nn.Parameter(torch.ones(16))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(functional.gelu(self.a(x)) * self.gamma)

    space = proved(Scaled(), (torch.randn(1, 8),))
    if space.layers:
        small = materialise(Scaled(), space, space.smallest)
        assert small.gamma.shape == (2,)
    else:
        assert reasons(space)["a"]


def test_one_batch_of_any_size_gives_the_same_space() -> None:
    torch.manual_seed(0)
    net = networks.Separable()
    assert read(net, (torch.randn(4, 3, 16, 16),)).layers == read(net).layers


def test_a_model_that_does_not_run_is_a_data_error() -> None:
    with pytest.raises(DataError):
        read(networks.Separable(), (torch.randn(1, 4, 16, 16),))


def test_adapters_are_found_by_name_or_path() -> None:
    assert isinstance(find_adapter("generic"), GenericAdapter)
    assert isinstance(find_adapter("adapters.generic:GenericAdapter"), GenericAdapter)
    with pytest.raises(UsageError, match="must be one of generic"):
        find_adapter("other")
    for path in ("nowhere:A", "adapters.generic:Nothing", "adapters.generic:RawGroup"):
        with pytest.raises(UsageError, match="an adapter's path must name a class"):
            find_adapter(path)
