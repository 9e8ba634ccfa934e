"""Networks without some of their blocks: assembled, refitted, scored, and probed."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from adapters.generic import GenericAdapter
from compressor.network.blocks import Dropped
from compressor.network.counting import count
from compressor.network.structure import materialise
from compressor.network.tracing import Fate, trace_fates, trace_sums
from compressor.network.verify import verify_space
from compressor.refit.assembly import Assembler
from compressor.refit.library import LayerLibrary, make_library
from compressor.refit.sequence import Refitter
from compressor.score.few import few_images
from compressor.score.judge import make_judge
from compressor.score.probe import Probe
from compressor.score.sensitivity import sensitivities
from compressor.score.trials import Trials
from compressor.space import Architecture
from tests.networks import PaddedShortcuts
from tests.test_assembly import drawn
from tests.test_blocks import Inverted, Transformer
from tests.test_library import EXAMPLE, images


class PreActivation(nn.Module):
    """Blocks that begin with a BatchNorm: the stem's is in the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.narrow = nn.Conv2d(16, 16, 3, 1, 1)
        self.blocks = nn.Sequential(_Pre(), _Pre(), _Pre())
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.narrow(self.stem(x).relu()))
        return self.head(x.relu().mean((2, 3)))


class _Pre(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.one = nn.BatchNorm2d(16), nn.Conv2d(16, 24, 3, 1, 1, bias=False)
        self.norm2, self.two = nn.BatchNorm2d(24), nn.Conv2d(24, 16, 3, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.one(self.norm1(x).relu())
        return x + self.two(self.norm2(out).relu())


KINDS = (PaddedShortcuts, Inverted, Transformer, PreActivation)


class InPlace(Inverted):
    """Blocks that change what they read: their outputs cannot be replayed."""

    def __init__(self) -> None:
        super().__init__()
        for place in (1, 2):
            block = self.body[place]
            block.forward = None  # type: ignore[assignment]
            self.body[place] = _Adding(block.conv)  # type: ignore[arg-type]


class _Adding(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += self.conv(x)
        return x


@cache
def library(kind: Any) -> LayerLibrary:
    torch.manual_seed(0)
    model = kind()
    with torch.no_grad():
        for _ in range(4):
            model.train()(torch.randn(16, 3, 16, 16))
    model.eval()
    space = GenericAdapter(blocks=True).read(model, EXAMPLE)
    return make_library(model, verify_space(model, EXAMPLE, space), EXAMPLE, images(2))


def refitter(made: LayerLibrary, **how: Any) -> Refitter:
    return Refitter(made.model, made.space, EXAMPLE, few_images(images(2)), **how)


def trials(made: LayerLibrary, judge: Any) -> Trials:
    assembler = Assembler(made.model, made.space, made.consumers)
    return Trials(made.model, assembler, refitter(made, remember=True), judge, lambda _: True)


def dropping(made: LayerLibrary, *names: str) -> Architecture:
    pairs = zip(made.space.layers, made.space.original, strict=True)
    assert set(names) <= {layer.name for layer in made.space.layers if layer.block}
    return tuple(0 if layer.name in names else option for layer, option in pairs)


@pytest.mark.parametrize("kind", [*KINDS, InPlace])
def test_scores_do_not_depend_on_what_was_scored_before(kind: Any) -> None:
    made = library(kind)
    judge = make_judge("agreement", images(2), made.model)
    some = drawn(made.space.sizes, 6)
    blocks = [i for i, layer in enumerate(made.space.layers) if layer.block]
    some += [tuple(0 if i == b else o for i, o in enumerate(some[0])) for b in blocks]
    some += [tuple(int(i == b) or o for i, o in enumerate(some[1])) for b in blocks]
    ours = trials(made, judge)
    scores = [ours(a) for a in some]
    assert scores == pytest.approx([trials(made, judge)(a) for a in some], rel=1e-9, abs=1e-12)
    assert len(set(scores)) > 3


@pytest.mark.parametrize("kind", [*KINDS, InPlace])
def test_an_assembled_network_is_the_materialised_one(kind: Any) -> None:
    made = library(kind)
    assembler = Assembler(made.model, made.space, {})
    x = images(1)[0]
    with torch.no_grad():
        for architecture in [*drawn(made.space.sizes, 5), made.space.smallest, made.space.original]:
            want = materialise(made.model, made.space, architecture)(x)
            torch.testing.assert_close(assembler.assemble(architecture)(x), want)


def test_a_built_network_lacks_what_is_dropped() -> None:
    made = library(PaddedShortcuts)
    architecture = dropping(made, "blocks.0")
    built = made.build(architecture)
    plain = materialise(made.model, made.space, architecture)
    assert isinstance(built.get_submodule("blocks.0"), Dropped)
    assert count(built, EXAMPLE).madds == count(plain, EXAMPLE).madds
    assert sum(1 for _ in built.parameters()) == sum(1 for _ in plain.parameters())


def test_a_users_score_gets_a_network_that_lacks_what_is_dropped() -> None:
    made = library(PaddedShortcuts)
    seen: list[nn.Module] = []
    trials(made, lambda net: seen.append(net) or 0.5)(dropping(made, "blocks.2"))
    assert isinstance(seen[0].get_submodule("blocks.2"), Dropped)


@pytest.mark.parametrize("kind", [*KINDS, InPlace])
def test_refitting_makes_up_for_dropped_blocks(kind: Any) -> None:
    made = library(kind)
    names = [layer.name for layer in made.space.layers if layer.block]
    judge = make_judge("agreement", images(2), made.model)
    architecture = dropping(made, names[0])
    plain = materialise(made.model, made.space, architecture)
    before = judge(plain)
    refitter(made).whole(plain, architecture)
    assert judge(plain) > before
    assert trials(made, judge)(architecture) > before


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_inside_of_a_dropped_block_is_refitted(kind: Any) -> None:
    made = library(kind)
    ours = refitter(made)
    for architecture in drawn(made.space.sizes, 5):
        gone = made.space.dropped(architecture)
        assert not any(b.holds(name) for b in gone for name in ours.touched(architecture))


def test_the_layers_behind_a_dropped_block_are_refitted() -> None:
    made = library(PaddedShortcuts)
    touched = refitter(made).touched(dropping(made, "blocks.0"))
    assert touched == ("blocks.1.conv1", "blocks.1.conv2", "blocks.1.bn1", "blocks.1.bn2")


def test_sums_of_dropped_blocks_are_not_counted() -> None:
    made = library(PaddedShortcuts)
    sums = trace_sums(made.model, EXAMPLE, ["blocks.0", "blocks.2"])
    assert sums == {"blocks.0": range(0, 1), "blocks.2": range(2, 3)}
    fates = trace_fates(made.model, EXAMPLE)
    fate = fates["blocks.2.conv2"]
    assert (fate.before, fate.addend) == (2, 0)
    assert fate.without([range(0, 1)]) == fate
    assert fate.without([range(2, 3)]).addend is None
    far = Fate(addend=2, position=1, before=1)
    assert far.without([range(2, 3)]) == Fate(addend=1, position=1)
    assert far.without([range(0, 1), range(4, 5)]) == far


def test_dropping_a_block_has_a_cost_of_its_own_before_the_search() -> None:
    made = library(PaddedShortcuts)
    judge = make_judge("agreement", images(2), made.model)
    assembler = Assembler(made.model, made.space, made.consumers)
    costs = sensitivities(assembler, made.space, judge, EXAMPLE)
    for layer, found in zip(made.space.layers, costs, strict=True):
        assert found[-1] == 0
        if layer.block:
            assert len(found) == 2
            assert found[0] > 0


def test_a_probe_passes_over_what_a_dropped_block_hides() -> None:
    made = library(PaddedShortcuts)
    judge = make_judge("agreement", images(2), made.model)
    base = made.space.canonical(dropping(made, "blocks.0"))
    costs = Probe(trials(made, judge), made.space, judge)(base)
    names = [layer.name for layer in made.space.layers]
    inner = costs[names.index("blocks.0.conv1")]
    assert [c for c in inner if c != float("inf")] == [0.0]
    assert costs[names.index("blocks.0")][1] < 0  # with the block it is better
