from __future__ import annotations

import numpy as np
import pytest

from benchmarks.fbnet_latency import MEASURED, features, predicted, work
from benchmarks.latency_figure import draw
from benchmarks.support import spearman

OPTIONS = ["k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip"]


def test_a_skip_takes_nothing_unless_it_must_change_the_shape():
    assert work((14, 64, 64, 1), "skip") == [0] * 7
    assert work((14, 64, 112, 1), "skip")[2] == 64 * 112 * 14 * 14
    assert work((28, 32, 64, 2), "k3_e6")[:3] == [
        32 * 192 * 28 * 28, 9 * 192 * 14 * 14, 192 * 64 * 14 * 14,
    ]  # fmt: skip


def test_a_device_whose_layers_add_up_is_predicted_from_a_hundred_networks():
    rng = np.random.default_rng(0)
    networks = rng.integers(0, len(OPTIONS), (600, 22))
    every = features(networks, OPTIONS)
    sums = every[:, -7:]  # the kinds of work
    times = 3 + sums @ rng.uniform(0.5, 1, 7) / sums.mean()
    guess = predicted(every[:MEASURED], times[:MEASURED], every)
    assert np.abs(guess / times - 1).mean() < 0.005


def test_pictures_are_drawn_of_what_was_measured(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `benchmarks` is not installed")
    point = {"points": [[0.5, 0.6], [1, 1]], "mean_error": 0.1, "spearman": 1.0, "networks": 2}
    curves = {"widths": [1, 2], "a": [1, 2], "b": [1, 2], "c": [1, 2]}
    found = {"staircase": curves, "cifar10_resnet56": {"prediction": point}}
    names = [path.name for path in draw(found, tmp_path)]
    assert names == ["latency-staircase.png", "latency-prediction.png"]
    assert draw({"cifar10_resnet56": {"slicing": {}}}, tmp_path) == []


def test_ranks_alone_correlate_and_equal_values_share_theirs():
    assert spearman([1, 2, 3], [10, 200, 3000]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # by hand: ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / 22.5**0.5)
