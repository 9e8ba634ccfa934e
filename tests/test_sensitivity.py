"""What every choice costs alone: as if each network were built and judged from scratch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.network.data import tensors_hash
from compressor.progress import Event
from compressor.refit.assembly import Assembler
from compressor.refit.library import LayerLibrary, make_library
from compressor.score.judge import Judge, make_judge
from compressor.score.sensitivity import sensitivities
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
    return max(0.0, -score)


def rows(network: Any, layer: int) -> list[list[int]]:
    """The options of each kernel that the layer can have, in order."""
    choices = library(network).space.layers[layer].choices
    kernels = dict.fromkeys(choice.kernel for choice in choices)
    return [[o for o, choice in enumerate(choices) if choice.kernel == k] for k in kernels]


def row_measured(row: list[int], original: int) -> list[int]:
    """The two ends of a row without the original, and two between them."""
    return [row[i] for i in measured(len(row) + (row[-1] != original))]


def measured(size: int) -> list[int]:
    """The two ends below the original, and two between them."""
    last = size - 2
    return list(range(size - 1)) if last < 4 else [round(i * last / 3) for i in range(4)]


@pytest.mark.parametrize("network", NETWORKS)
def test_as_if_each_network_were_built_and_judged_alone(network: Any) -> None:
    for layer, values in enumerate(found(network)):
        for row in rows(network, layer):
            # of one kernel, a larger option never counts for more than a smaller one
            running = 0.0
            for option in reversed(row_measured(row, len(values) - 1)):
                running = max(running, from_scratch(network, layer, option))
                assert values[option] == pytest.approx(running, abs=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_original_costs_nothing_and_larger_options_never_more(network: Any) -> None:
    table = found(network)
    assert tuple(map(len, table)) == library(network).space.sizes
    for layer, values in enumerate(table):
        assert values[-1] == 0.0
        for row in rows(network, layer):
            of_kernel = [values[option] for option in row]
            assert of_kernel == sorted(of_kernel, reverse=True)
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


class Made(Judge):
    """The scores it is given, one for each network that it sees."""

    scores: Iterator[float]

    def values(self, number: int, outputs: Any, targets: Any) -> Tensor:
        return torch.tensor([next(self.scores)])


def told(scores: Iterable[float]) -> Made:
    made = Made("top1", images(1))
    object.__setattr__(made, "scores", iter(scores))  # a judge is frozen
    return made


def test_of_one_kernel_nothing_follows_for_another() -> None:
    made = library(networks.LargeKernels)
    layers = range(len(made.space.layers))
    both = [layer for layer in layers if len(rows(networks.LargeKernels, layer)) > 1]
    assert any(len(row) > 5 for layer in both for row in rows(networks.LargeKernels, layer))
    # the further down in the list of kernels, the larger the cost: 1, 2, 3
    scores, wanted = [], []
    for layer in layers:
        costs = [0.0] * made.space.sizes[layer]
        for number, row in enumerate(rows(networks.LargeKernels, layer), 1):
            asked = row_measured(row, len(costs) - 1)
            scores += [-float(number)] * len(asked)
            for option in row[: row.index(asked[-1]) + 1] if asked else ():
                costs[option] = float(number)
        wanted.append(tuple(costs))
    assembler = Assembler(made.model, made.space, made.consumers)
    assert sensitivities(assembler, made.space, told(scores), EXAMPLE) == tuple(wanted)
    # so that a larger option does cost more somewhere, and is not evened out
    assert any(list(costs) != sorted(costs, reverse=True) for costs in wanted)


def test_a_gain_is_no_negative_cost_and_a_dip_is_lifted() -> None:
    network = networks.Separable
    made = library(network)
    lengths = [
        len(row_measured(row, size - 1))
        for layer, size in enumerate(made.space.sizes)
        for row in rows(network, layer)
    ]
    scores = [s for length in lengths for s in [-1.0, -2.0, *[0.5] * length][:length]]
    assembler = Assembler(made.model, made.space, made.consumers)
    table = sensitivities(assembler, made.space, told(scores), EXAMPLE)
    left = iter(lengths)
    for layer, values in enumerate(table):
        assert values[-1] == 0.0
        for row in rows(network, layer):
            of_kernel = [values[option] for option in row]
            # the first two are the smallest options: the dip of the first is lifted
            assert of_kernel[0] == [0.0, 1.0, 2.0][min(2, next(left))]
            assert of_kernel == sorted(of_kernel, reverse=True)


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
