from __future__ import annotations

import itertools
import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.cost import (
    SizeTable,
    TensorSize,
    costs_of,
    layer_control,
    madds_table,
    params_table,
    tensor_numel,
)
from compressor.coupling import Coupling, IndexMap, Role
from compressor.space import Architecture, ChannelGroup, Choice, KernelCut, SearchLayer, SearchSpace


def _layer(
    name: str,
    channels: list[int],
    kernels: list[int],
    consumer: tuple[str, int],
    through: str | None = None,
) -> SearchLayer:
    """A convolution whose rows, bias and reader's columns (a flatten repeats them) are cut."""
    width, (reader, repeat) = channels[-1], consumer
    repeats = IndexMap.from_positions(
        [list(range(u * repeat, (u + 1) * repeat)) for u in range(width)]
    )
    one = IndexMap.identity(width)
    couplings = [
        Coupling(f"{name}.weight", 0, Role.PRODUCED, one),
        Coupling(f"{name}.bias", 0, Role.PRODUCED, one),
        Coupling(f"{reader}.weight", 1, Role.CONSUMED, repeats),
    ]
    if through:
        couplings.append(Coupling(through, 0, Role.THROUGH, one))
    pairs = sorted(itertools.product(channels, kernels))
    return SearchLayer(
        name,
        (name,),
        tuple(Choice(c, k) for c, k in pairs),
        ChannelGroup(width, 1, tuple(range(width)), tuple(couplings)),
        KernelCut(f"{name}.weight", kernels[-1], 2),
    )


class Net:
    """A chain of convolutions with biases, each with a depthwise one behind, and a linear head."""

    def __init__(self, widths: list[list[int]], kernels: list[list[int]], side: int) -> None:
        self.side, self.classes, self.flat = side, 5, 4
        names = [f"conv{i}" for i in range(len(widths))]
        readers = [(n, 1) for n in names[1:]] + [("head", self.flat)]
        self.space = SearchSpace(
            tuple(
                _layer(n, w, k, r, f"{n}.depthwise")
                for n, w, k, r in zip(names, widths, kernels, readers, strict=True)
            )
        )
        self.tensors: list[TensorSize] = []
        before = 3
        for name, width, kernel in zip(names, widths, kernels, strict=True):
            shape = (width[-1], before, kernel[-1], kernel[-1])
            self.tensors += [
                TensorSize(f"{name}.weight", shape, side * side),
                TensorSize(f"{name}.bias", (width[-1],), 0),
                TensorSize(f"{name}.depthwise", (width[-1], 1, 3, 3), side * side),
            ]
            before = width[-1]
        self.tensors.append(TensorSize("head.weight", (self.classes, before * self.flat), 1))

    def count(self, architecture: Architecture) -> tuple[int, int]:
        """Multiply-adds and parameters by hand."""
        before, madds, params = 3, 0, 0
        for _, choice in self.space.choices(architecture):
            assert choice.channels is not None
            assert choice.kernel is not None
            weight = choice.channels * before * choice.kernel**2
            depthwise = choice.channels * 9
            madds += (weight + depthwise) * self.side**2
            params += weight + choice.channels + depthwise
            before = choice.channels
        head = before * self.flat * self.classes
        return madds + head, params + head


@st.composite
def _nets(draw: st.DrawFn) -> Net:
    layers = draw(st.integers(1, 4))
    widths = st.lists(st.integers(1, 24), min_size=1, max_size=4, unique=True).map(sorted)
    kernels = st.lists(st.sampled_from([1, 3, 5, 7]), min_size=1, max_size=3, unique=True)
    return Net(
        [draw(widths) for _ in range(layers)],
        [sorted(draw(kernels)) for _ in range(layers)],
        draw(st.integers(1, 32)),
    )


@settings(max_examples=150, deadline=None)
@given(_nets(), st.data())
def test_tables_equal_the_count_by_hand(net: Net, data: st.DataObject) -> None:
    madds, params = madds_table(net.space, net.tensors, 0), params_table(net.space, net.tensors)
    drawn = tuple(data.draw(st.integers(0, n - 1)) for n in net.space.sizes)
    for architecture in (net.space.original, net.space.smallest, drawn):
        assert (madds(architecture), params(architecture)) == net.count(architecture)


@settings(max_examples=50, deadline=None)
@given(_nets())
def test_control_is_what_one_layer_can_take_away(net: Net) -> None:
    madds = madds_table(net.space, net.tensors, 7)
    original = net.space.original
    for i, control in enumerate(layer_control(madds, net.space)):
        changed = tuple(0 if j == i else o for j, o in enumerate(original))
        assert control == net.count(original)[0] - net.count(changed)[0] >= 0


def test_fixed_costs_are_always_there() -> None:
    net = Net([[2, 4]], [[3]], 2)
    assert madds_table(net.space, net.tensors, 1000)((0,)) == net.count((0,))[0] + 1000


def test_a_concatenation_is_cut_by_several_layers() -> None:
    def branch(name: str, offset: int) -> SearchLayer:
        index = IndexMap.from_positions([[offset + u] for u in range(4)])
        couplings = (
            Coupling(name, 0, Role.PRODUCED, IndexMap.identity(4)),
            Coupling("join", 1, Role.CONSUMED, index),
        )
        group = ChannelGroup(4, 1, (0, 1, 2, 3), couplings)
        return SearchLayer(name, (name,), tuple(map(Choice, (1, 2, 4))), group)

    space = SearchSpace((branch("left", 0), branch("right", 4)))
    tensors = [TensorSize("left", (4, 3), 1), TensorSize("right", (4, 3), 1)]
    table = params_table(space, [*tensors, TensorSize("join", (5, 8), 1)])
    assert table((0, 1)) == 1 * 3 + 2 * 3 + 5 * (1 + 2)
    assert table((2, 2)) == 4 * 3 + 4 * 3 + 5 * 8


def test_units_of_grouped_channels_count_once_for_each_group() -> None:
    index = IndexMap.from_positions([[0, 4], [1, 5], [2, 6], [3, 7]])
    group = ChannelGroup(8, 2, (0, 1, 2, 3), (Coupling("w", 0, Role.PRODUCED, index),))
    space = SearchSpace((SearchLayer("w", ("w",), (Choice(2), Choice(6), Choice(8)), group),))
    table = params_table(space, [TensorSize("w", (8, 10), 1)])
    assert [table((o,)) for o in range(3)] == [20, 60, 80]


def test_three_dimensions_of_one_weight_shrink_together() -> None:
    net = Net([[2, 8], [4, 16]], [[3], [1, 5]], 1)
    weight = TensorSize("conv1.weight", (16, 8, 5, 5), 1)
    table = params_table(net.space, [weight])
    assert table((0, 0)) == 4 * 2 * 1
    assert table((1, 3)) == 16 * 8 * 25


def test_tensors_that_no_layer_cuts_count_in_full() -> None:
    net = Net([[2, 4]], [[3]], 2)
    extra = TensorSize("stem", (7, 3, 3, 3), 100)
    more = madds_table(net.space, [*net.tensors, extra], 0)
    assert more((0,)) == net.count((0,))[0] + 7 * 27 * 100


def test_tensors_without_cost_may_be_missing() -> None:
    net = Net([[2, 4]], [[1, 3]], 2)
    head = net.tensors[-1]
    table = params_table(net.space, [head])
    assert table(net.space.smallest) == 2 * net.flat * net.classes


def test_an_empty_space_costs_what_the_network_costs() -> None:
    table = SizeTable.of("madds", SearchSpace(()), [(TensorSize("w", (3, 4), 2), 2)], 5)
    assert table(()) == 29


def test_large_counts_are_exact() -> None:
    net = Net([[2**10, 2**14]], [[7]], 2**10)
    assert madds_table(net.space, net.tensors, 0)((1,)) == net.count((1,))[0] > 2**39


def test_numel_of_a_scalar_is_one() -> None:
    assert tensor_numel(()) == 1
    assert tensor_numel((2**31, 2**31, 4)) == 2**64


def test_a_lookup_takes_microseconds() -> None:
    net = Net([list(range(8, 65, 8))] * 50, [[3]] * 50, 8)
    table = madds_table(net.space, net.tensors, 0)
    start = time.perf_counter()
    for _ in range(500):
        table(net.space.original)
    assert (time.perf_counter() - start) / 500 < 1e-3


def test_many_at_once_cost_the_same_as_one_by_one() -> None:
    net = Net([[2, 8], [4, 16, 24], [5]], [[3], [1, 5], [3]], 7)
    networks = np.array(list(itertools.product(*map(range, net.space.sizes))))
    for table in (madds_table(net.space, net.tensors, 3), params_table(net.space, net.tensors)):
        assert table.many(networks).tolist() == [table(tuple(n)) for n in networks.tolist()]
        assert costs_of(table, networks).tolist() == table.many(networks).tolist()


def test_costs_of_asks_one_by_one_where_it_must() -> None:
    class Plain:
        unit, monotone = "latency", False

        def __call__(self, architecture: Architecture) -> float:
            return float(sum(architecture))

    assert costs_of(Plain(), np.array([[1, 2], [3, 4]])).tolist() == [3.0, 7.0]
