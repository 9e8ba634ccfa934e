"""What the choices next to a network's own cost: as if each neighbour were judged alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.score.judge import make_judge
from compressor.score.probe import MOST, Probe, affordable, beside, hints
from compressor.score.scorer import Recipes, Scorer
from compressor.space import Choice
from tests import networks
from tests.test_library import EXAMPLE, images
from tests.test_trials import candidates, library, trials


@pytest.mark.parametrize("network", [networks.Residual, networks.LargeKernels])
def test_as_if_each_neighbour_were_judged_alone(network: Any) -> None:
    space = library(network).space
    judge = make_judge("agreement", images(2), library(network).model)
    ours, alone = trials(judge, network), trials(judge, network)
    base = candidates(1, network)[0]
    found = Probe(ours, space, judge)(base)
    own = judge(alone.network(base))
    told = 0
    for number, (layer, row) in enumerate(zip(space.layers, found, strict=True)):
        near = beside(layer.choices, base[number])
        for option, cost in enumerate(row):
            if option == base[number]:
                assert cost == 0
            elif option in near:
                single = (*base[:number], option, *base[number + 1 :])
                assert cost == pytest.approx(own - judge(alone.network(single)), abs=1e-9)
                told += 1
            else:
                assert cost == math.inf
    assert told >= len(space.layers)


def test_shares_of_the_layers_tell_the_same_together() -> None:
    space = library(networks.Residual).space
    judge = make_judge("agreement", images(2), library(networks.Residual).model)
    base = candidates(1, networks.Residual)[0]
    whole = Probe(trials(judge, networks.Residual), space, judge)(base)
    for cut in range(1, len(space.layers)):
        parts = [range(cut), range(cut, len(space.layers))]
        told = [
            Probe(trials(judge, networks.Residual), space, judge).share(
                base, part, own=bool(part[0])
            )
            for part in parts
        ]
        assert [share.own is None for share in told] == [True, False]
        assert [len(share.seconds) for share in told] == [len(part) for part in parts]
        assert hints(space, base, told) == whole  # in every digit: workers cut anywhere
        with pytest.raises(ValueError, match="itself"):
            hints(space, base, told[:1])


def test_the_next_widths_are_beside() -> None:
    choices = [Choice(channels=c, kernel=None) for c in (8, 16, 24, 32)]
    assert beside(choices, 0) == [1]
    assert beside(choices, 1) == [0, 2]
    assert beside(choices, 3) == [2]
    assert beside(choices[:1], 0) == []


def test_of_another_kernel_the_most_alike_width_is_beside() -> None:
    pairs = [(8, 3), (16, 3), (8, 5), (32, 3), (16, 5), (32, 5), (32, 7)]
    choices = [Choice(channels=c, kernel=k) for c, k in pairs]
    near = {pairs[o] for o in beside(choices, pairs.index((16, 5)))}
    assert near == {(8, 5), (32, 5), (16, 3), (32, 7)}


@given(
    neighbours=st.integers(1, 400),
    refitted=st.integers(1, 64),
    judged=st.integers(1, 5000),
    others=st.integers(1, 1000),
)
def test_a_probe_is_worth_eight_evaluations_at_most(
    neighbours: int, refitted: int, judged: int, others: int
) -> None:
    def seconds(images: int) -> float:  # of a probe, an image a second
        return neighbours * (refitted + images) / 2

    images = affordable(neighbours, refitted, judged, others)
    eight = 8 * (refitted + judged)
    if images:
        assert min(128, others) <= images <= min(MOST, others)
        assert seconds(images) <= eight
        assert images in (MOST, others) or seconds(images + 1) > eight
    else:
        assert seconds(min(128, others)) > eight


@pytest.mark.parametrize(("judging", "pays"), [(1, False), (40, True)])
def test_no_probe_where_it_takes_longer_than_a_few_evaluations(judging: int, pays: bool) -> None:
    made, calibration = library(networks.Residual), images(24)
    assert sum(map(len, calibration)) == 384
    judge = make_judge("agreement", images(judging), made.model)
    scorer = Scorer(made, EXAMPLE, calibration, judge, Recipes())
    guide = scorer.guide()
    assert guide.hints is not None
    assert (guide.probe is not None) == pays


def test_whoever_brings_a_score_gets_a_probe() -> None:
    made = library(networks.Residual)
    scorer = Scorer(made, EXAMPLE, images(24), lambda _: 0.0, Recipes())
    assert scorer.guide().probe is not None
