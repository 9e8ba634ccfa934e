"""Trials: the same scores as without shortcuts, and given up only where that is stated."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.refit.assembly import Assembler
from compressor.refit.library import LayerLibrary, make_library
from compressor.refit.sequence import Refitter
from compressor.refit.step import Step
from compressor.score.few import few_images
from compressor.score.judge import Judge, make_judge
from compressor.score.trials import Trials
from compressor.search.outcome import Outcome
from compressor.space import Architecture
from tests import networks
from tests.test_assembly import drawn
from tests.test_library import EXAMPLE, images, read


@cache
def library(network: Any = networks.Residual) -> LayerLibrary:
    model, space = read(network)
    return make_library(model, space, EXAMPLE, images(2))


def trials(judge: Any, network: Any = networks.Residual, eligible: Any = lambda _: True) -> Trials:
    made = library(network)
    assembler = Assembler(made.model, made.space, made.consumers)
    few = few_images(images(2))
    refitter = Refitter(made.model, made.space, EXAMPLE, few, remember=True)
    return Trials(made.model, assembler, refitter, judge, eligible)


def candidates(count: int, network: Any = networks.Residual) -> list[Architecture]:
    return drawn(library(network).space.sizes, count)


# ---- the score


@pytest.mark.parametrize("name", ["agreement", "loss", "top1"])
@pytest.mark.parametrize("network", [networks.Residual, networks.PaddedShortcuts])
def test_the_score_is_the_judges_of_the_network(network: Any, name: str) -> None:
    labelled = [(x, torch.arange(len(x)) % 10) for x in images(3)]
    judge = make_judge(name, labelled, library(network).model)
    ours, plain = trials(judge, network), trials(judge, network)
    for architecture in candidates(4, network):
        assert ours(architecture) == judge(plain.network(architecture))
    assert ours.images == 4 * 48


def test_the_order_of_candidates_does_not_matter() -> None:
    judge = make_judge("agreement", images(2), library().model)
    asked = candidates(4)
    forward, backward = trials(judge), trials(judge)
    scores = [forward(a) for a in asked]
    assert [backward(a) for a in reversed(asked)] == scores[::-1]


def test_refitting_brings_the_network_closer_than_the_library() -> None:
    judge = make_judge("agreement", images(2), library().model)
    ours = trials(judge)
    some = candidates(4)
    gains = [ours(a) / judge(library().build(a)) for a in some]  # of minus a divergence
    assert sum(gains) / len(gains) < 1


def test_a_function_may_change_the_network_that_it_gets() -> None:
    judge = make_judge("agreement", images(2), library().model)

    def careless(model: nn.Module) -> Tensor:
        found = judge(model)
        for parameter in model.parameters():
            parameter.requires_grad_(True).data.zero_()
        model.train()
        model(images(1)[0])
        return torch.tensor(found, dtype=torch.float64)

    careful, ours = trials(judge), trials(careless)
    for architecture in (*candidates(3), *candidates(1)):
        assert ours(architecture) == careful(architecture)


# ---- giving up


@dataclass(frozen=True)
class Table(Judge):
    """Shows batches of images whose values are made up, and counts them."""

    table: Any = None
    now: list[Any] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)

    def inputs(self, device: torch.device) -> Iterator[tuple[int, tuple[Tensor, ...], Any]]:
        x = torch.zeros(1, 3, 16, 16)
        for number in range(len(self.table[self.now[-1]]) // 50):
            self.shown.append(number)
            yield number, (x,), None

    def values(self, number: int, outputs: Any, targets: Any, part: Any = None) -> Tensor:
        values: Tensor = self.table[self.now[-1]][50 * number : 50 * (number + 1)]
        return values


class Told(Trials):
    """Tells the made-up judge which candidate it sees."""

    def network(self, architecture: Architecture) -> nn.Module:
        self._judge.now.append(architecture)  # type: ignore[attr-defined]
        return super().network(architecture)


def noise(seed: int, count: int = 1000) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator, dtype=torch.float64)


def told(values: dict[Architecture, Tensor], eligible: Any = lambda _: True) -> Told:
    made = library()
    assembler = Assembler(made.model, made.space, made.consumers)
    refitter = Refitter(made.model, made.space, EXAMPLE, few_images(images(1)), remember=True)
    return Told(made.model, assembler, refitter, Table("top1", (), table=values), eligible)


def test_a_clearly_worse_candidate_is_given_up_with_an_estimate() -> None:
    one, other = candidates(2)
    values = {one: noise(0), other: noise(1) - 3}
    ours = told(values)
    assert ours(one) == float(values[one].mean())
    assert ours.images == 1000
    found = ours(other)
    assert ours.images == 1000 + 150  # the first whole batches of at least 128
    less = values[other][:150] - values[one][:150]
    assert found == pytest.approx(float(values[one].mean() + less.mean()), abs=1e-12)
    assert ours.given_up == {other: 150}


@pytest.mark.parametrize("shift", [-0.25, -0.05])
def test_it_is_given_up_as_soon_as_it_cannot_be_much_better(shift: float) -> None:
    one, other = candidates(2)
    values = {one: noise(0) - 4, other: noise(1) - 4 + shift}
    ours = told(values)
    ours(one)
    ours(other)
    less, lacks = values[other] - values[one], 1 - float(values[one].mean())  # 1 is perfect
    behind = [
        n for n in range(150, 1000, 50)
        if less[:n].mean() < 0
        and less[:n].mean() + 2.5 * less[:n].std() / math.sqrt(n) < 0.05 * lacks
    ]  # fmt: skip
    assert ours.images == 1000 + behind[0]
    assert ours.given_up == {other: behind[0]}


@pytest.mark.parametrize("shift", [0.2, 0.4, 3.0])
def test_what_is_ahead_sees_every_image(shift: float) -> None:
    one, other = candidates(2)
    values = {one: noise(0) - 4, other: noise(1) - 4 + shift}
    ours = told(values)
    ours(one)
    assert ours(other) == float(values[other].mean())
    assert ours.images == 2000


def test_what_may_be_much_better_sees_every_image() -> None:
    one, other = candidates(2)
    values = {one: noise(0) + 1, other: noise(1) + 1}  # perfect already: nothing is too little
    ours = told(values)
    ours(one)
    assert ours(other) == float(values[other].mean())


def test_the_comparison_is_with_the_best_so_far() -> None:
    first, best, worse, last = candidates(4)
    values = {first: noise(0), best: noise(1) + 3, worse: noise(2), last: noise(3) + 2}
    ours = told(values)
    for architecture in (first, best, worse):
        ours(architecture)
    assert ours.images == 2000 + 150  # as good as the first, but that no longer counts
    found = ours(last)
    less = values[last][:150] - values[best][:150]
    assert found == pytest.approx(float(values[best].mean() + less.mean()), abs=1e-12)


def test_what_is_not_eligible_is_never_compared_with() -> None:
    outside, other, third = candidates(3)
    values = {outside: noise(0) + 9, other: noise(1), third: noise(2) + 1}
    ours = told(values, lambda a: a != outside)
    for architecture in (outside, other, third):
        assert ours(architecture) == float(values[architecture].mean())
    assert ours.images == 3000


def test_few_images_are_never_cut_short() -> None:
    one, other = candidates(2)
    ours = told({one: noise(0, 150), other: noise(1, 150) - 9})
    ours(one)
    ours(other)
    assert ours.images == 300


# ---- resuming


@pytest.mark.parametrize("done", [0, 1, 3, 5])
def test_resumed_scores_are_those_of_a_run_without_a_break(done: int) -> None:
    asked = candidates(7)
    shifts = [0.0, 2.0, 0.5, 2.0, 1.9, 3.0, 0.0]
    values = {a: noise(i) + s for i, (a, s) in enumerate(zip(asked, shifts, strict=True))}

    def eligible(architecture: Architecture) -> bool:
        return architecture != asked[5]

    whole = told(values, eligible)
    scores = [whole(a) for a in asked]
    again = told(values, eligible)
    known = {a: [Outcome(s, "", 0.0)] for a, s in zip(asked[:done], scores, strict=False)}
    again.resume(known | {(0,) * len(asked[0]): [Outcome(None, "failed", 0.0)]})
    assert [again(a) for a in asked[done:]] == scores[done:]


def test_nothing_known_nothing_to_compare_with() -> None:
    ours = told({a: noise(i) for i, a in enumerate(candidates(1))})
    ours.resume({})
    ours(candidates(1)[0])
    assert ours.images == 1000


def test_a_function_is_not_called_for_what_is_known() -> None:
    calls: list[nn.Module] = []

    def own(model: nn.Module) -> float:
        calls.append(model)
        return 0.5

    first, other = candidates(2)
    ours = trials(own)
    ours.resume({first: [Outcome(0.5, "", 0.0)]})
    ours(other)
    assert len(calls) == 1


# ---- batches shown in parts


def large(batches: int, size: int = 200) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(size, 3, 16, 16, generator=generator) for _ in range(batches)]


def test_large_batches_are_shown_in_parts_with_the_same_score() -> None:
    labelled = [(x, torch.arange(len(x)) % 10) for x in large(2)]
    for name in ("agreement", "loss", "top1"):
        judge = make_judge(name, labelled, library().model)
        plain = trials(judge)
        for architecture in candidates(2):
            ours = trials(judge)  # nothing to compare with, so nothing is given up
            whole = judge(plain.network(architecture))
            assert ours(architecture) == pytest.approx(whole, rel=1e-5, abs=1e-7)
            assert ours.images == 400


def test_a_hopeless_candidate_costs_no_whole_batch() -> None:
    judge = make_judge("agreement", large(2), library().model)
    ours = trials(judge)
    ours(library().space.original)
    before = ours.images
    found = ours((0,) * len(library().space.sizes))
    assert found < 0
    assert before == 400
    assert 128 <= ours.images - before < 200


# ---- what candidates have in common


class LateShortcut(nn.Module):
    """A sum whose other addend is made by a branch that runs later, and can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = networks.conv(3, 16)
        self.one, self.two = networks.conv(16, 24), nn.Conv2d(24, 32, 3, padding=1)
        self.wide = networks.conv(16, 32, k=1)
        self.short = nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        main = self.two(self.one(x))
        return self.head(functional.relu(main + self.short(self.wide(x))).mean((2, 3)))


SHAPES = [
    networks.Residual, networks.PaddedShortcuts, networks.Separable, networks.SqueezeExcite,
    networks.Dense, networks.LargeKernels, networks.SharedModule, LateShortcut,
]  # fmt: skip


def walk(network: Any, seed: int, count: int = 6) -> list[Architecture]:
    """Candidates that differ from one another in a few layers."""
    draw = random.Random(seed)  # noqa: S311  (a reproducible walk)
    now = candidates(1, network)[0]
    found = [now]
    for _ in range(count):
        changed = list(now)
        for _ in range(draw.choice([1, 1, 2])):
            layer = draw.randrange(len(now))
            changed[layer] = draw.randrange(library(network).space.sizes[layer])
        now = tuple(changed)
        found.append(now)
    return found


@pytest.mark.parametrize("network", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_candidate_does_not_depend_on_those_before(network: Any, seed: int) -> None:
    judge = make_judge("agreement", images(2), library(network).model)
    ours = trials(judge, network)
    for architecture in walk(network, seed):
        alone = trials(judge, network).network(architecture).state_dict()
        found = ours.network(architecture).state_dict()
        assert found.keys() == alone.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", SHAPES)
def test_judged_with_what_is_known_as_if_from_scratch(network: Any) -> None:
    judge = make_judge("agreement", images(2), library(network).model)
    other = make_judge("agreement", images(3)[2:], library(network).model, 4.0)
    ours = trials(judge, network)
    for architecture in walk(network, 2):
        for asked in (judge, other):
            alone = asked(trials(judge, network).network(architecture))
            assert ours.judged(architecture, asked) == pytest.approx(alone, rel=1e-4, abs=1e-7)
        assert ours(architecture) == pytest.approx(judge(ours.network(architecture)), rel=1e-6)


def test_what_comes_before_the_first_difference_is_not_refitted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge = make_judge("agreement", images(2), library().model)
    ours = trials(judge)
    base = (0,) * len(library().space.sizes)
    ours.network(base)
    solved: list[str] = []
    solve = Step.solve
    monkeypatch.setattr(
        Step, "solve", lambda self, *rest: (solved.append(self.name), solve(self, *rest))[1]
    )
    ours.network(base)
    assert solved == []
    ours.network((*base[:-1], 1))
    late = set(solved)
    solved.clear()
    ours.network((1, *base[1:-1], 1))
    assert late < set(solved)
