from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from compressor.coupling import Coupling, IndexMap, Role, Run
from compressor.deploy.agreement import largest_difference
from compressor.deploy.export import export_base
from compressor.deploy.slicing import BaseGraph
from compressor.device.measure import Settings, create_session
from compressor.device.timing import Latency, Schedule
from compressor.errors import ArchitectureError, ExportError, MeasureError
from compressor.latency.cost import LatencyCost
from compressor.network.structure import materialise
from compressor.space import ChannelGroup, Choice, KernelCut, SearchLayer, SearchSpace

PRODUCED, CONSUMED, THROUGH = Role.PRODUCED, Role.CONSUMED, Role.THROUGH
NORM = ("weight", "bias", "running_mean", "running_var")


def couple(tensor: str, dim: int, role: Role, units: int, offset: int = 0, each: int = 1):
    return Coupling(tensor, dim, role, IndexMap((Run(0, units, offset, each, each),)))


def norm(name: str, units: int, offset: int = 0) -> list[Coupling]:
    return [couple(f"{name}.{leaf}", 0, THROUGH, units, offset) for leaf in NORM]


def channels(name: str, width: int, kept: list[int], couplings: list[Coupling]) -> SearchLayer:
    order = tuple(np.random.default_rng(width).permutation(width).tolist())
    choices = tuple(Choice(channels=k) for k in [*kept, width])
    return SearchLayer(name, (name,), choices, ChannelGroup(width, 1, order, tuple(couplings)))


def kernel(name: str, edge: int, smaller: int) -> SearchLayer:
    cut = KernelCut(f"{name}.weight", edge, 2)
    return SearchLayer(name, (name,), (Choice(kernel=smaller), Choice(kernel=edge)), kernel=cut)


class Chain(nn.Module):
    """Convolution, BatchNorm, PReLU, dilated 5×5, flatten by view, two kinds of linear."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.PReLU(8)
        self.two = nn.Conv2d(8, 6, 5, padding=4, dilation=2, stride=2)
        self.first = nn.Linear(6 * 16, 10)
        self.second = nn.Linear(10, 4, bias=False)
        self.never_read = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.act(self.norm(self.one(x))).clamp(0, 6)
        x = self.two(x)
        hidden = torch.relu(self.first(x.view(x.size(0), -1)))
        return self.second(hidden), self.second(hidden[:, None] * torch.ones(1, 3, 1))

    @staticmethod
    def space() -> SearchSpace:
        one = [
            couple("one.weight", 0, PRODUCED, 8),
            *norm("norm", 8),
            couple("act.weight", 0, THROUGH, 8),
            couple("two.weight", 1, CONSUMED, 8),
        ]
        two = [
            couple("two.weight", 0, PRODUCED, 6),
            couple("two.bias", 0, PRODUCED, 6),
            couple("first.weight", 1, CONSUMED, 6, each=16),
        ]
        first = [
            couple("first.weight", 0, PRODUCED, 10),
            couple("first.bias", 0, PRODUCED, 10),
            couple("second.weight", 1, CONSUMED, 10),
            couple("never_read.weight", 1, CONSUMED, 10),
        ]
        return SearchSpace(
            (
                channels("one", 8, [3], one),
                channels("two", 6, [2], two),
                kernel("two", 5, 3),
                channels("first", 10, [4], first),
            )
        )


class Separable(nn.Module):
    """Depthwise separable; the depthwise kernel shrinks as well."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.depth = nn.Conv2d(12, 12, 5, padding=2, groups=12, bias=False)
        self.norm2 = nn.BatchNorm2d(12)
        self.point = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.norm(self.expand(x)))
        x = nn.functional.relu6(self.norm2(self.depth(x)))
        return torch.flatten(nn.functional.adaptive_avg_pool2d(self.point(x), 1), 1)

    @staticmethod
    def space() -> SearchSpace:
        couplings = [
            couple("expand.weight", 0, PRODUCED, 12),
            *norm("norm", 12),
            couple("depth.weight", 0, THROUGH, 12),
            *norm("norm2", 12),
            couple("point.weight", 1, CONSUMED, 12),
        ]
        return SearchSpace((channels("expand", 12, [4, 7], couplings), kernel("depth", 5, 3)))


class Joined(nn.Module):
    """Two branches joined by concatenation, read by one convolution and a tied linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 6, 3, padding=1)
        self.right = nn.Conv2d(3, 10, 3, padding="same")
        self.norm = nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 5, 2, stride=2)
        self.deep = nn.Linear(16, 16, bias=False)
        self.again = nn.Linear(16, 16, bias=False)
        self.again.weight = self.deep.weight

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1)))
        pooled = x.mean((2, 3))
        return {"up": self.up(x), "deep": self.again(self.deep(pooled)).sum(1)}

    @staticmethod
    def space() -> SearchSpace:
        def branch(name: str, units: int, offset: int) -> list[Coupling]:
            return [
                couple(f"{name}.weight", 0, PRODUCED, units),
                couple(f"{name}.bias", 0, PRODUCED, units),
                *norm("norm", units, offset),
                couple("up.weight", 0, CONSUMED, units, offset),
                couple("deep.weight", 0, PRODUCED, units, offset),
                couple("deep.weight", 1, CONSUMED, units, offset),
            ]

        return SearchSpace(
            (
                channels("left", 6, [2], branch("left", 6, 0)),
                channels("right", 10, [3], branch("right", 10, 6)),
            )
        )


@dataclass(frozen=True)
class Case:
    model: nn.Module
    space: SearchSpace
    graph: BaseGraph


@pytest.fixture(scope="module")
def cases() -> Callable[[type], Case]:
    made: dict[type, Case] = {}

    def get(kind: type) -> Case:
        if kind not in made:
            torch.manual_seed(0)
            model = kind().eval()
            for name, tensor in model.state_dict().items():
                if "running" in name or "norm" in name:
                    tensor.copy_(torch.rand(tensor.shape) + 0.5)
            made[kind] = Case(model, kind.space(), export_base(model, (torch.randn(1, 3, 8, 8),)))
        return made[kind]

    return get


ARCHITECTURES = [
    *[(Chain, a) for a in [(0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 1)]],
    *[(Separable, a) for a in [(0, 0), (1, 1), (1, 0), (2, 0), (2, 1)]],
]


@pytest.mark.parametrize(("kind", "architecture"), ARCHITECTURES)
@pytest.mark.parametrize("batch", [1, 3])
def test_slice_computes_the_materialised_network(cases, kind, architecture, batch):
    case = cases(kind)
    session = create_session(case.graph.slice(case.space, architecture), Settings())
    small = materialise(case.model, case.space, architecture)
    x = torch.randn(batch, 3, 8, 8)
    assert largest_difference(small, session, [(x,)], 1e-5) <= 1e-5


@pytest.mark.parametrize("architecture", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_slice_of_a_concatenation_and_of_tied_tensors(cases, architecture):
    case = cases(Joined)
    session = create_session(case.graph.slice(case.space, architecture), Settings())
    small = materialise(case.model, case.space, architecture)
    small.again.weight = small.deep.weight
    x = torch.randn(2, 3, 8, 8)
    assert largest_difference(small, session, [(x,)], 1e-5) <= 1e-5


def test_slice_is_a_valid_model_that_is_smaller(cases):
    case = cases(Chain)
    whole = case.graph.slice(case.space, case.space.original)
    small = case.graph.slice(case.space, case.space.smallest)
    onnx.checker.check_model(onnx.load_from_string(small), full_check=True)
    assert len(small) < len(whole)
    shapes = {t.name: list(t.dims) for t in onnx.load_from_string(small).graph.initializer}
    assert shapes["two.weight"] == [2, 3, 3, 3]
    assert shapes["first.weight"] == [4, 32]


def test_slicing_leaves_the_base_as_it_was(cases):
    case = cases(Separable)
    before = case.graph.slice(case.space, case.space.original)
    case.graph.slice(case.space, case.space.smallest)
    assert case.graph.slice(case.space, case.space.original) == before


def test_a_tensor_that_the_graph_does_not_have_is_named(cases):
    case = cases(Separable)
    layer = channels("gone", 4, [2], [couple("gone.weight", 0, PRODUCED, 4)])
    space = SearchSpace((layer,))
    with pytest.raises(ExportError, match=r"'gone\.weight'.*materialised"):
        case.graph.slice(space, (0,))
    case.graph.slice(space, (1,))  # nothing is cut, nothing is missing


def test_cuts_and_kernels_that_do_not_fit_are_errors(cases):
    graph = cases(Separable).graph
    wide = SearchSpace((channels("point", 40, [2], [couple("point.weight", 0, PRODUCED, 40)]),))
    with pytest.raises(ExportError, match=r"'point\.weight' has the shape \[5, 12, 1, 1\]"):
        graph.slice(wide, (0,))
    with pytest.raises(ExportError, match=r"'norm\.weight'"):
        graph.slice(SearchSpace((kernel("norm", 3, 1),)), (0,))
    with pytest.raises(ExportError, match=r"'depth\.weight' goes from \[5, 5\] to 2"):
        graph.slice(SearchSpace((kernel("depth", 5, 2),)), (0,))
    with pytest.raises(ArchitectureError):
        graph.slice(SearchSpace((kernel("depth", 5, 3),)), (7,))


@pytest.mark.parametrize("data", [b"", b"no model at all" * 9])
def test_what_is_not_a_model_is_no_base_graph(data):
    with pytest.raises(ExportError, match="not an ONNX model"):
        BaseGraph(data)


def latency(ms: float, ratio: float) -> Latency:
    return Latency(ms, ms, ms, ms, ms, 6, ratio, ratio, ratio)


class FakeMeasurer:
    """Times by size: the original takes `original` ms, whatever the machine does meanwhile."""

    def __init__(self, fails: int = 0) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.fails = fails

    def __call__(self, models, settings):
        self.calls.append(tuple(models))
        if "candidate" in models and self.fails:
            self.fails -= 1
            raise MeasureError("refused")
        first = len(models["original"])
        slow = len(self.calls)  # the machine gets slower with every call
        return {n: latency(8.0 * slow * len(m) / first, len(m) / first) for n, m in models.items()}


def cost_of(case: Case, measurer: FakeMeasurer, **options) -> LatencyCost:
    return LatencyCost(case.graph, case.space, Settings(), measurer=measurer, **options)


def test_latency_is_the_share_of_the_original_and_measured_once(cases):
    case, measurer = cases(Separable), FakeMeasurer()
    cost = cost_of(case, measurer)
    size = {a: len(case.graph.slice(case.space, a)) for a in [(0, 0), (2, 1)]}
    assert cost((0, 0)) == cost((0, 0)) < 8 * 2
    share = size[0, 0] / size[2, 1]
    assert cost((0, 0)) / cost((2, 1)) == pytest.approx(share)
    assert measurer.calls == [("original", "candidate"), ("original",)]
    assert (cost.unit, cost.monotone) == ("latency", False)


def test_the_journal_keeps_measurements(cases):
    case, kept = cases(Separable), {}
    first = cost_of(case, FakeMeasurer(), remember=kept.__setitem__)((0, 0))
    assert kept[0, 0] == first
    assert set(kept) == {(0, 0), (2, 1)}
    measurer = FakeMeasurer()
    again = cost_of(case, measurer, recall=kept.get)
    assert again((0, 0)) == first
    assert measurer.calls == []


def test_what_cannot_be_sliced_or_run_falls_back(cases):
    case = cases(Separable)
    built = []

    def build(architecture):
        built.append(architecture)
        return case.graph.slice(case.space, architecture)

    assert cost_of(case, FakeMeasurer(fails=1), fallback=build)((0, 0)) > 0
    assert built == [(0, 0)]
    with pytest.raises(MeasureError, match="refused"):
        cost_of(case, FakeMeasurer(fails=1))((0, 0))
    with pytest.raises(ArchitectureError):
        cost_of(case, FakeMeasurer())((0, 0, 0))


def test_latency_is_measured_on_real_sessions(cases):
    case = cases(Separable)
    quick = Settings(schedule=replace(Schedule(), warmup=1, repeats=1, rounds=6, seconds=1e-6))
    assert LatencyCost(case.graph, case.space, quick, batch=2)((0, 0)) > 0


def test_a_measurement_with_its_interval_is_in_the_same_milliseconds(cases):
    case, measurer = cases(Separable), FakeMeasurer()
    cost = cost_of(case, measurer)
    ms = cost((2, 1))
    found = cost.measured((0, 0), Settings())
    assert found.median_ms == found.low_ms == found.high_ms == pytest.approx(found.ratio * ms)
    assert found.median_ms == pytest.approx(cost((0, 0)))
