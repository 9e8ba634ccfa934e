from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.coupling import Coupling, IndexMap, Role
from compressor.deploy.slicing import BaseGraph
from compressor.device.measure import Settings, create_session, random_inputs, run_session
from compressor.device.timing import Latency
from compressor.errors import ExportError, MeasureError
from compressor.latency import parts as latency_parts
from compressor.latency.cache import this_machine
from compressor.latency.fused import fuse
from compressor.latency.operators import operators
from compressor.latency.parts import EMPTY, Clockwork, empty_model, measured_parts, reference_model
from compressor.latency.table import LatencyTable, TableData, build_table
from compressor.plain import decode, encode
from compressor.space import Architecture, ChannelGroup, Choice, SearchLayer, SearchSpace

WIDTHS, SIDE = (8, 12, 16, 32), 8


def network(depth: int) -> tuple[BaseGraph, SearchSpace]:
    """A chain of convolutions with ReLU, each of which can keep 8, 12, 16 or 32 channels."""
    rng, widths = np.random.default_rng(0), [3, *[WIDTHS[-1]] * depth]
    nodes, weights, layers = [], [], []
    for place, (before, after) in enumerate(itertools.pairwise(widths)):
        values = rng.normal(size=(after, before, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{place}"))
        given, made = ("x" if place == 0 else f"r{place - 1}"), f"c{place}"
        last = "y" if place == depth - 1 else f"r{place}"
        nodes.append(helper.make_node("Conv", [given, f"w{place}"], [made], made, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [made], [last], f"relu{place}"))
    for place in range(depth - 1):
        whole = IndexMap.identity(WIDTHS[-1])
        couplings = (
            Coupling(f"w{place}", 0, Role.PRODUCED, whole),
            Coupling(f"w{place + 1}", 1, Role.CONSUMED, whole),
        )
        group = ChannelGroup(WIDTHS[-1], 1, tuple(range(WIDTHS[-1])), couplings)
        choices = tuple(Choice(channels=width) for width in WIDTHS)
        layers.append(SearchLayer(f"c{place}", (f"c{place}",), choices, group))
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, SIDE, SIDE])
        for name, channels in (("x", 3), ("y", WIDTHS[-1]))
    ]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], weights)
    opset = [helper.make_opsetid("", 18)]
    data = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return BaseGraph(data), SearchSpace(tuple(layers))


@dataclass
class FakeDevice:
    """Takes 0.01 ms for a call and besides a time for every operator, by what it is given.

    In a whole network each operator takes `inside` times as long as alone; `drift` slows the
    machine down from call to call.
    """

    inside: float = 1.5
    drift: float = 0.0
    calls: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(self, models, settings):
        self.calls.append(tuple(models))
        slow = 1 + self.drift * len(self.calls)
        times = {name: slow * self.time(data) for name, data in models.items()}
        first = next(iter(times.values()))
        return {name: latency(ms, ms / first) for name, ms in times.items()}

    def time(self, data: bytes) -> float:
        parts = [0.001 * work(s) for s in convolutions(data)]
        return 0.01 + sum(parts) * (self.inside if is_whole(data) else 1)


def is_whole(data: bytes) -> bool:
    return onnx.load_model_from_string(data).graph.name == "net"


def convolutions(data: bytes) -> Iterator[tuple[int, ...]]:
    model = onnx.load_model_from_string(data)
    if is_whole(data):
        ran = operators(fuse(data, Settings()))
        yield from (o.sizes for o in ran if o.form.kind == "conv")
    else:
        constants = [tuple(t.dims) for t in model.graph.initializer if len(t.dims) == 4]
        inputs = [i.type.tensor_type.shape.dim for i in model.graph.input]
        given = [tuple(d.dim_value for d in dims) for dims in inputs if len(dims) >= 4]
        yield from (g[:4] + c for g, c in zip(itertools.cycle(given), constants))


def work(sizes: tuple[int, ...]) -> float:
    """Steps of 16 channels."""
    _, before, _, _, after = sizes[:5]
    return -(-after // 16) * (before + 2)


def latency(ms: float, ratio: float) -> Latency:
    return Latency(ms, ms, ms, ms, ms, 30, ratio, ratio, ratio)


def built(device: FakeDevice, folder: Path | None = None, depth: int = 5) -> LatencyTable:
    graph, space = network(depth)
    clockwork = Clockwork(device, Settings(), this_machine(Settings()), folder)
    return build_table(graph, space, clockwork, lambda m: fuse(m, Settings()))


def share(device: FakeDevice, architecture: Architecture) -> float:
    graph, space = network(len(architecture) + 1)
    original = device.time(graph.slice(space, space.original))
    return device.time(graph.slice(space, architecture)) / original


@pytest.mark.parametrize("drift", [0.0, 0.02])
def test_networks_that_were_not_measured_are_predicted(drift):
    device = FakeDevice(drift=drift)
    table = built(device)
    rng = np.random.default_rng(3)
    for _ in range(12):
        architecture = tuple(int(rng.integers(len(WIDTHS))) for _ in range(4))
        assert table(architecture) == pytest.approx(share(device, architecture), rel=0.03)
    assert table.correction.error < 0.03
    assert table((3, 3, 3, 3)) == pytest.approx(1, rel=0.03)


def test_many_networks_are_the_same_as_one_by_one():
    table = built(FakeDevice())
    networks = np.array(list(itertools.product(range(4), repeat=4)), dtype=np.int64)
    assert table.many(networks).tolist() == [table(tuple(row)) for row in networks.tolist()]


def test_a_second_table_measures_nothing(tmp_path):
    first = built(FakeDevice(), tmp_path)
    again = FakeDevice()
    second = built(again, tmp_path)
    assert again.calls == []
    assert second.shares == first.shares
    assert second((0, 1, 2, 3)) == first((0, 1, 2, 3))


def test_another_network_measures_only_what_is_new(tmp_path):
    first, second = FakeDevice(), FakeDevice()
    built(first, tmp_path)
    built(second, tmp_path, depth=6)
    assert any("Conv" in name for names in first.calls for name in names)
    assert second.calls
    assert all(names[0] == "original" for names in second.calls)  # whole networks alone


def test_equal_operators_are_measured_once():
    device = FakeDevice()
    built(device)
    parts = [name for names in device.calls for name in names if name and name != EMPTY]
    parts = [name for name in parts if "x" in name]
    assert len(parts) == len(set(parts))


def test_what_became_known_corrects_the_table():
    table = built(FakeDevice())
    slow = {a: 2 * s for a, s in table.shares.items()}
    assert table.learnt(slow)((0, 1, 2, 3)) == pytest.approx(2 * table((0, 1, 2, 3)), rel=0.2)
    assert table.shares != slow


def test_a_table_is_the_same_from_its_plain_values():
    table = built(FakeDevice())
    data = decode(TableData, json.loads(json.dumps(encode(table.data))))
    again = LatencyTable.of(data)
    assert again.correction == table.correction
    assert again((0, 1, 2, 3)) == table((0, 1, 2, 3))
    for wrong in (
        {"networks": data.networks[:2], "shares": data.shares[:2]}, {"groups": ((7,),)},
        {"networks": ((9,) * 4, *data.networks[1:])}, {"times": ()}, {"shares": ()},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            LatencyTable.of(replace(data, **wrong))


def test_a_space_without_layers_has_no_table():
    graph, _ = network(3)
    clockwork = Clockwork(FakeDevice(), Settings(), this_machine(Settings()))
    with pytest.raises(ExportError, match="has none"):
        build_table(graph, SearchSpace(()), clockwork, lambda m: fuse(m, Settings()))


def test_a_clock_that_sees_nothing_is_an_error():
    def blind(models, settings):
        return {name: latency(0.0, 0.0) for name in models}

    clockwork = Clockwork(blind, Settings(), this_machine(Settings()))
    with pytest.raises(MeasureError, match="positive share"):
        measured_parts([], clockwork)


def test_an_unsure_time_is_taken_once_more():
    widths = iter([0.5, 0.01])

    def noisy(models, settings):
        width = next(widths)
        return {n: Latency(1, 1, 1, 1, 1, 9, 1, 1 - width, 1 + width) for n in models}

    clockwork = Clockwork(noisy, Settings(), this_machine(Settings()))
    assert measured_parts([], clockwork).parts[EMPTY].high == pytest.approx(1.01)


class Paced(FakeDevice):
    """So many times slower in each measurement, then as fast as ever; the first suffers least."""

    def __init__(self, paces):
        super().__init__()
        self.paces = list(paces)

    def __call__(self, models, settings):
        pace = self.paces.pop(0) if self.paces else 1.0
        found = super().__call__(models, settings)
        first = next(iter(found))
        return {
            name: latency(f.median_ms * pace, f.ratio * (1.0 if name == first else pace))
            for name, f in found.items()
        }


@pytest.mark.parametrize("paces", [(1.5,), (1.0, 1.5), (1.0, 1.5, 1.5), (1.5, 1.0, 1.5)])
def test_what_was_measured_on_a_slow_machine_is_measured_again(paces):
    table, steady = built(Paced(paces)), built(FakeDevice())
    assert table.shares == steady.shares
    assert table.data.times == steady.data.times


def test_a_machine_that_stays_slow_is_measured_at_most_three_times():
    steady, device = FakeDevice(), Paced([1.0, *[1.5] * 100])
    built(steady)
    built(device)
    assert len(device.calls) <= 3 * len(steady.calls)


def test_whole_networks_that_memory_cannot_hold_together_take_turns_with_the_original(monkeypatch):
    device = FakeDevice()
    monkeypatch.setattr(latency_parts, "_HELD", 1)
    built(device)
    whole = [names for names in device.calls if "original" in names]
    assert len(whole) > 4
    assert all(len(names) == 3 for names in whole)  # with one network and the reference part


def test_what_stands_beside_the_parts_runs():
    for data in (reference_model(), empty_model()):
        session = create_session(data, Settings())
        made = run_session(session, random_inputs(session, np.random.default_rng(0)))
        assert all(np.isfinite(out).all() for out in made)
