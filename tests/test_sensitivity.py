"""What every choice costs alone: as if each network were built and judged from scratch."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.assembly import Assembler
from compressor.data import tensors_hash
from compressor.judge import Judge, make_judge
from compressor.library import LayerLibrary, make_library
from compressor.progress import Event
from compressor.sensitivity import sensitivities
from tests import networks
from tests.test_library import EXAMPLE, images, read

NETWORKS = [
    networks.Residual, networks.Separable, networks.SqueezeExcite, networks.Dense,
    networks.PaddedShortcuts, networks.LargeKernels, networks.SharedModule,
]  # fmt: skip
Table = tuple[tuple[float, ...], ...]


@cache
def library(network: Any) -> LayerLibrary:
    model, space = read(network)
    return make_library(model, space, EXAMPLE, images(1))


def judge(network: Any) -> Judge:
    return make_judge("agreement", images(2), library(network).model)


@cache
def found(network: Any) -> Table:
    made = library(network)
    assembler = Assembler(made.model, made.space, made.consumers)
    return sensitivities(assembler, made.space, judge(network), EXAMPLE)


def single(network: Any, layer: int, option: int) -> tuple[int, ...]:
    original = library(network).space.original
    return (*original[:layer], option, *original[layer + 1 :])


def from_scratch(network: Any, layer: int, option: int) -> float:
    score = judge(network)(library(network).build(single(network, layer, option)))
    return math.sqrt(max(0.0, -score))


def measured(size: int) -> list[int]:
    """The two ends below the original, and two between them."""
    last = size - 2
    return list(range(size - 1)) if last < 4 else [round(i * last / 3) for i in range(4)]


@pytest.mark.parametrize("network", NETWORKS)
def test_as_if_each_network_were_built_and_judged_alone(network: Any) -> None:
    for layer, values in enumerate(found(network)):
        wanted = {o: from_scratch(network, layer, o) for o in measured(len(values))}
        # a larger option never counts for more than a smaller one
        running = 0.0
        for option in sorted(wanted, reverse=True):
            running = max(running, wanted[option])
            assert values[option] == pytest.approx(running, abs=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_original_costs_nothing_and_larger_options_never_more(network: Any) -> None:
    table = found(network)
    assert tuple(map(len, table)) == library(network).space.sizes
    for values in table:
        assert values[-1] == 0.0
        assert list(values) == sorted(values, reverse=True)
        assert values[0] > 0.0


class Wide(nn.Module):
    """Enough options that some are not measured."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = networks.conv(3, 80), networks.conv(80, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x)).mean((2, 3)))


def test_options_between_two_measured_ones_lie_on_the_line() -> None:
    layer, values = max(enumerate(found(Wide)), key=lambda item: len(item[1]))
    known = [*measured(len(values)), len(values) - 1]
    assert len(known) == 5
    assert len(values) > 6
    ends = {o: from_scratch(Wide, layer, o) for o in known[:-1]} | {known[-1]: 0.0}
    assert list(ends.values()) == sorted(ends.values(), reverse=True)  # so nothing is lifted
    for below, above in itertools.pairwise(known):
        for option in range(below, above + 1):
            share = (option - below) / (above - below)
            wanted = ends[below] + share * (ends[above] - ends[below])
            assert values[option] == pytest.approx(wanted, abs=1e-5)


def test_a_gain_is_no_negative_cost_and_a_dip_is_lifted() -> None:
    class Made(Judge):
        """A score of its own for each network that it sees."""

        def values(self, number: int, outputs: Any, targets: Any) -> Tensor:
            return torch.tensor([next(scores)])

    made = library(networks.Separable)
    sizes = made.space.sizes

    rows = []
    for size in sizes:
        rows += [-1.0, -4.0, *[0.5] * size][: len(measured(size))]
    scores = iter(rows)
    assembler = Assembler(made.model, made.space, made.consumers)
    table = sensitivities(assembler, made.space, Made("top1", images(1)), EXAMPLE)
    for values in table:
        assert values[-1] == 0.0
        # the first two are the smallest options: the dip of the first is lifted to the second's
        assert values[0] == (2.0 if len(measured(len(values))) > 1 else 1.0)
        assert list(values) == sorted(values, reverse=True)


def test_the_model_is_not_touched_and_the_assembler_is_left_at_the_original() -> None:
    made = library(networks.Residual)
    before = tensors_hash(made.model.state_dict().items())
    assembler = Assembler(made.model, made.space, made.consumers)
    events: list[Event] = []
    sensitivities(assembler, made.space, judge(networks.Residual), EXAMPLE, events.append)
    assert tensors_hash(assembler.network.state_dict().items()) == before
    assert tensors_hash(made.model.state_dict().items()) == before
    assert [(e.done, e.total) for e in events] == [
        (i + 1, len(made.space.layers)) for i in range(len(made.space.layers))
    ]
    with torch.no_grad():
        x = images(1)[0]
        assert torch.equal(assembler.network(x), made.model(x))
