"""Masked and materialised networks, on spaces written by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compressor.coupling import Coupling, IndexMap, Role
from compressor.errors import ArchitectureError
from compressor.network.structure import mask, masked, materialise
from compressor.space import ChannelGroup, Choice, KernelCut, SearchLayer, SearchSpace

P, C, T = Role.PRODUCED, Role.CONSUMED, Role.THROUGH


def coupling(tensor: str, dim: int, role: Role, positions: list[list[int]]) -> Coupling:
    return Coupling(tensor, dim, role, IndexMap.from_positions(positions))


def channels(
    order: list[int], keep: list[int], *parts: tuple[str, int, Role], per_unit: int = 1
) -> SearchLayer:
    """A layer of `len(order)` units, one position each, with the widths `keep`."""
    places = [[u] for u in range(len(order))]
    group = ChannelGroup(
        len(order) * per_unit,
        per_unit,
        tuple(order),
        tuple(coupling(t, d, r, places) for t, d, r in parts),
    )
    choices = tuple(Choice(channels=w) for w in (*keep, len(order) * per_unit))
    return SearchLayer("layer", ("a",), choices, group)


def kernel(tensor: str, edge: int, spatial: int = 2) -> SearchLayer:
    choices = tuple(Choice(kernel=k) for k in range(3, edge + 1, 2))
    return SearchLayer("kernel", (tensor,), choices, kernel=KernelCut(tensor, edge, spatial))


class Net(nn.Module):
    """Convolution, BatchNorm, depthwise convolution, PReLU, convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.dw, self.act = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.PReLU(4)
        self.b = nn.Conv2d(4, 2, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn_like(parameter))
            self.bn.running_mean.normal_()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.dw(self.bn(self.a(x)))))


PARTS = (
    ("a.weight", 0, P), ("a.bias", 0, P), ("bn.weight", 0, T), ("bn.bias", 0, T),
    ("bn.running_mean", 0, T), ("bn.running_var", 0, T), ("dw.weight", 0, T), ("dw.bias", 0, T),
    ("act.weight", 0, T), ("b.weight", 1, C),
)  # fmt: skip
SPACE = SearchSpace((channels([2, 0, 3, 1], [2], *PARTS),))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def same(a: nn.Module, b: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(a.eval()(x), b.eval()(x), rtol=1e-5, atol=1e-6)


def test_kept_values_are_those_of_the_kept_channels_in_their_old_order(net: Net) -> None:
    small = materialise(net, SPACE, (0,))
    for name, dim, _ in PARTS:
        want = net.state_dict()[name].index_select(dim, torch.tensor([0, 2]))
        assert torch.equal(small.state_dict()[name], want), name
    assert torch.equal(small.b.bias, net.b.bias)


def test_attributes_follow_the_tensors(net: Net) -> None:
    small = materialise(net, SPACE, (0,))
    assert (small.a.out_channels, small.a.in_channels, small.a.groups) == (2, 3, 1)
    assert small.bn.num_features == 2
    assert (small.dw.in_channels, small.dw.out_channels, small.dw.groups) == (2, 2, 2)
    assert small.act.num_parameters == 2
    assert (small.b.in_channels, small.b.out_channels) == (2, 2)
    assert "2, kernel_size" in repr(small.a)


def test_pruned_equals_masked_equals_masked_in_place(net: Net) -> None:
    x = torch.randn(2, 3, 5, 5)
    small, copied = materialise(net, SPACE, (0,)), mask(net, SPACE, (0,))
    same(small, copied, x)
    with masked(net, SPACE, (0,)):
        same(small, net, x)
    with torch.no_grad():
        assert float((copied(x) - net(x)).abs().max()) > 0.01


def test_only_consumers_are_masked(net: Net) -> None:
    copied = mask(net, SPACE, (0,))
    changed = [n for n, t in copied.state_dict().items() if not torch.equal(t, net.state_dict()[n])]
    assert changed == ["b.weight"]
    assert not copied.b.weight[:, [1, 3]].any()


def test_the_input_is_not_touched(net: Net) -> None:
    net.train()
    net.bn.eval()
    net.a.weight.requires_grad_(False)
    net.b.weight.grad = torch.ones_like(net.b.weight)
    places = [t.data_ptr() for t in net.state_dict().values()]
    before = copy.deepcopy(net.state_dict())
    small = materialise(net, SPACE, (0,))
    mask(net, SPACE, (0,))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert [t.data_ptr() for t in net.state_dict().values()] == places
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    assert [m.training for m in net.modules()] == [True, True, False, True, True, True]
    assert net.dw.groups == 4
    assert float(net.b.weight.grad.sum()) == 8
    assert [m.training for m in small.modules()] == [m.training for m in net.modules()]
    assert not small.a.weight.requires_grad
    assert small.b.weight.requires_grad


def test_the_original_architecture_is_a_whole_copy(net: Net) -> None:
    whole = materialise(net, SPACE, (1,))
    assert whole is not net
    assert all(torch.equal(t, net.state_dict()[n]) for n, t in whole.state_dict().items())


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_masked_brings_every_bit_back_also_after_an_exception(
    net: Net, error: type[BaseException]
) -> None:
    with torch.no_grad():
        net.b.weight[0, 1] = float("nan")
        net.b.weight[1, 3] = -0.0
    before = net.b.weight.detach().view(torch.int32).clone()
    with pytest.raises(error):
        _fail_while_masked(net, error)
    assert torch.equal(net.b.weight.detach().view(torch.int32), before)


def _fail_while_masked(net: Net, error: type[BaseException]) -> None:
    with masked(net, SPACE, (0,)):
        assert not net.b.weight[:, [1, 3]].any()
        raise error


def test_units_of_a_grouped_convolution_keep_its_groups() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 4, 3, groups=2), nn.Flatten())
    ties = [[u, u + 4] for u in range(4)]
    group = ChannelGroup(
        8,
        2,
        (3, 1, 0, 2),
        (
            coupling("0.weight", 0, P, ties),
            coupling("0.bias", 0, P, ties),
            coupling("1.weight", 1, C, [[u] for u in range(4)]),
        ),
    )
    space = SearchSpace((SearchLayer("0", ("0",), (Choice(4), Choice(8)), group),))
    small = materialise(net, space, (0,))
    assert (small[1].groups, small[1].in_channels, small[1].out_channels) == (2, 4, 4)
    assert torch.equal(small[0].bias, net[0].bias[[1, 3, 5, 7]])
    same(small, mask(net, space, (0,)), torch.randn(1, 2, 4, 4))


def test_a_transposed_convolution_makes_its_channels_in_dimension_one() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.ConvTranspose2d(4, 2, 2, 2))
    layer = channels([0, 1, 2, 3], [1], ("0.weight", 1, P), ("0.bias", 0, P), ("1.weight", 0, C))
    space = SearchSpace((layer,))
    small = materialise(net, space, (0,))
    assert (small[0].in_channels, small[0].out_channels) == (3, 1)
    assert (small[1].in_channels, small[1].out_channels) == (1, 2)
    same(small, mask(net, space, (0,)), torch.randn(1, 3, 4, 4))


def test_linear_layernorm_and_embedding_follow() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    layer = channels(
        [0, 1, 2, 3], [2],
        ("0.weight", 1, P), ("1.weight", 0, T), ("1.bias", 0, T), ("2.weight", 1, C),
    )  # fmt: skip
    small = materialise(net, SearchSpace((layer,)), (0,))
    assert (small[0].embedding_dim, small[1].normalized_shape) == (2, (2,))
    assert small[2].in_features == 2
    assert small(torch.tensor([[1, 2]])).shape == (1, 2, 2)


@pytest.mark.parametrize("padding", [4, "same"])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_a_cropped_kernel_keeps_the_output_size(padding: int | str, mode: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 5, padding=padding, dilation=2, padding_mode=mode))
    space = SearchSpace((kernel("0.weight", 5),))
    small = materialise(net, space, (0,))
    assert torch.equal(small[0].weight, net[0].weight[:, :, 1:4, 1:4])
    assert small[0].kernel_size == (3, 3)
    assert small[0].padding == ("same" if padding == "same" else (2, 2))
    x = torch.randn(1, 3, 9, 9)
    assert small(x).shape == net(x).shape
    same(small, mask(net, space, (0,)), x)


@pytest.mark.parametrize("spatial", [1, 3])
def test_kernels_of_other_dimensions(spatial: int) -> None:
    torch.manual_seed(0)
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[spatial]
    net = nn.Sequential(conv(2, 3, 7, stride=2, padding=3))
    space = SearchSpace((kernel("0.weight", 7, spatial),))
    x = torch.randn(1, 2, *[9] * spatial)
    for option, edge in enumerate((3, 5, 7)):
        small = materialise(net, space, (option,))
        assert small[0].weight.shape[2:] == (edge,) * spatial
        assert small(x).shape == net(x).shape
        same(small, mask(net, space, (option,)), x)
    with masked(net, space, (0,)):
        assert int((net[0].weight != 0).sum()) == 6 * 3**spatial


def test_a_module_used_twice_is_cut_once_and_stays_shared() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
            self.alias = self.a

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.alias(self.a(x)))

    torch.manual_seed(0)
    net = Twice()
    layer = channels([3, 2, 1, 0], [2], ("a.weight", 0, P), ("a.bias", 0, P), ("b.weight", 1, C))
    # its own input is cut as well: the same units, in the other dimension
    square = coupling("a.weight", 1, C, [[u] for u in range(4)])
    group = ChannelGroup(4, 1, layer.group.order, (*layer.group.couplings, square))
    space = SearchSpace((SearchLayer("a", ("a",), layer.choices, group),))
    small = materialise(net, space, (0,))
    assert small.alias is small.a
    assert small.a.weight.shape == (2, 2)


def test_several_layers_may_cut_one_dimension() -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2), "c": nn.Linear(4, 2)})

    def layer(name: str, offset: int) -> SearchLayer:
        group = ChannelGroup(
            2,
            1,
            (1, 0),
            (
                coupling(f"{name}.weight", 0, P, [[0], [1]]),
                coupling(f"{name}.bias", 0, P, [[0], [1]]),
                coupling("c.weight", 1, C, [[offset], [offset + 1]]),
            ),
        )
        return SearchLayer(name, (name,), (Choice(1), Choice(2)), group)

    space = SearchSpace((layer("a", 0), layer("b", 2)))
    small = materialise(net, space, (0, 0))
    assert torch.equal(small["c"].weight, net["c"].weight[:, [1, 3]])
    assert small["c"].in_features == 2


BAD = {
    "another model's name": ("nowhere.weight", 0, 2),
    "a bias that is None": ("b.bias", 0, 2),
    "too many channels": ("a.weight", 0, 9),
    "no such dimension": ("a.weight", 7, 2),
}


@pytest.mark.parametrize("what", BAD)
def test_a_space_of_another_model_is_refused(what: str, net: Net) -> None:
    tensor, dim, units = BAD[what]
    layer = channels(list(range(units)), [1], (tensor, dim, P))
    net.b = nn.Conv2d(4, 2, 1, bias=False)
    space = SearchSpace((layer,))
    with pytest.raises(ArchitectureError, match="use the model that the space was read from"):
        materialise(net, space, (0,))


@pytest.mark.parametrize("architecture", [(), (0, 0), (2,), (-1,)])
def test_an_architecture_of_another_space_is_refused(
    net: Net, architecture: tuple[int, ...]
) -> None:
    for cut in (materialise, mask):
        with pytest.raises(ArchitectureError):
            cut(net, SPACE, architecture)
