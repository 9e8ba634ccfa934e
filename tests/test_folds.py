"""Ridges chosen by images that were left out, against the same by brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.refit.folds import Folds
from compressor.refit.moments import Moments, merged


def observed(
    x: Tensor, y: Tensor, *, folds: int = 4, weights: Tensor | None = None, size: int = 7
) -> Folds:
    """All of a linear layer's inputs, a few images at a time."""
    module = nn.Linear(x.shape[1], y.shape[1])
    found = Folds(1, x.shape[1], y.shape[1], folds)
    for i in range(0, len(x), size):
        part = slice(i, i + size)
        found.observe(module, x[part], y[part], 1, None if weights is None else weights[part])
    return found


def problem(seed: int, images: int, inputs: int, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs with a mean, targets, and the true weight."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(images, inputs, generator=generator, dtype=torch.float64) @ mix + 2
    weight = torch.randn(3, inputs, generator=generator, dtype=torch.float64)
    spread = (x @ weight.T).std()
    y = x @ weight.T + 1
    y += noise * spread * torch.randn(images, 3, generator=generator, dtype=torch.float64)
    return x, y, weight


def by_hand(x: Tensor, y: Tensor, start: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Ridge regression towards `start`, by appended rows."""
    mean, target = x.mean(0), y.mean(0)
    centred = x - mean
    level = (ridge * centred.square().mean() * len(x)).sqrt()
    rows = torch.cat([centred, level * torch.eye(x.shape[1])])
    wanted = torch.cat([y - target - centred @ start.T, torch.zeros(x.shape[1], y.shape[1])])
    weight = start + torch.linalg.lstsq(rows, wanted).solution.T
    return weight, target - weight @ mean


def left_out(x: Tensor, y: Tensor, start: Tensor, ridge: float) -> float:
    """Error of four-fold cross-validation, image by image to the next fold."""
    fold = torch.arange(len(x)) % 4
    total = 0.0
    for number in range(4):
        inside, outside = fold != number, fold == number
        weight, constant = by_hand(x[inside], y[inside], start, ridge)
        total += float((y[outside] - x[outside] @ weight.T - constant).square().sum())
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.3, 3.0]), st.integers(12, 60))
def test_no_ridge_beside_the_chosen_one_is_better_on_images_left_out(
    seed: int, noise: float, images: int
) -> None:
    x, y, weight = problem(seed, images, 8, noise)
    start = weight + torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    found = observed(x, y)
    got, constant = found.solved(start[None], constant=True)
    ridges = [1e-3 * 10**power for power in range(7)]
    wanted, shift = by_hand(x, y, start, ridges[found.chosen])
    assert torch.allclose(got[0], wanted, rtol=1e-5, atol=1e-7)
    assert torch.allclose(constant[0], shift, rtol=1e-5, atol=1e-6)
    here = left_out(x, y, start, ridges[found.chosen])
    for near in (found.chosen - 1, found.chosen + 1):
        if 0 <= near < len(ridges):
            assert here <= left_out(x, y, start, ridges[near]) * (1 + 1e-9)


def test_more_inputs_than_images_do_not_make_other_images_worse() -> None:
    """A classifier's weights, and features that have drifted: 150 images for 200 of them."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 200, generator=generator)
    clean = torch.randn(650, 200, generator=generator)
    seen = clean + 0.5 * torch.randn(650, 200, generator=generator)
    wanted = clean @ weight.T
    found, constant = observed(seen[:150], wanted[:150]).solved(weight[None], constant=True)

    def missed(w: Tensor, c: Tensor | float) -> float:
        return float((seen[150:] @ w.T + c - wanted[150:]).square().mean())

    before = missed(weight, 0.0)
    assert missed(found[0].float(), constant[0].float()) < 1.05 * before
    free = by_hand(seen[:150].double(), wanted[:150].double(), weight.double(), 1e-3)
    assert missed(free[0].float(), free[1].float()) > 1.2 * before  # what a fixed ridge does


def test_enough_images_free_the_weight_from_where_it_started() -> None:
    x, y, weight = problem(3, 500, 6, 0.01)
    found, _ = observed(x, y).solved(torch.zeros(1, 3, 6), constant=True)
    assert torch.allclose(found[0], weight, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("weighted", [False, True])
def test_folds_hold_together_what_moments_hold(weighted: bool) -> None:
    module = nn.Conv2d(6, 4, 3, padding=1, groups=2)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(11, 6, 5, 5, generator=generator) + 3
    y = torch.randn(11, 4, 5, 5, generator=generator)
    weights = torch.rand(11 * 25, generator=generator) if weighted else None
    plain, folds = Moments(2, 27, 2), Folds(2, 27, 2)
    plain.observe(module, x, y, 1, weights)
    for part in (slice(0, 3), slice(3, 11)):
        some = None if weights is None else weights.reshape(11, 25)[part].flatten()
        folds.observe(module, x[part], y[part], 1, some)
    whole = merged(folds.parts)
    assert len(folds.parts) == 4
    assert whole.count == pytest.approx(plain.count)
    for centred in (True, False):
        second = plain.second(centred=centred)
        assert torch.allclose(whole.second(centred=centred), second, atol=1e-5)
        cross = plain.cross(centred=centred)
        assert torch.allclose(whole.cross(centred=centred), cross, atol=1e-5)
    assert torch.allclose(whole.target, plain.target, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_error_is_that_of_the_patches(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 40, 5, generator=generator, dtype=torch.float64) + 4
    y = torch.randn(2, 40, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    constant = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(40, generator=generator, dtype=torch.float64) if weighted else None
    moments = Moments(2, 5, 3)
    moments.add(x, y, weights)
    each = torch.ones(40) if weights is None else weights
    missed = (x @ weight.mT + constant[:, None] - y).square() - y.square()
    wanted = float((missed * each[:, None]).sum())
    assert moments.error(weight, constant) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("images", [1, 2, 3])
def test_few_images_fill_few_folds(images: int) -> None:
    x, y, weight = problem(0, images, 4, 0.0)
    found = observed(x, y, size=1)
    assert len(found.parts) == images
    got, constant = found.solved(weight[None], constant=True)
    assert bool(torch.isfinite(got).all() and torch.isfinite(constant).all())


def test_without_a_constant_there_is_none() -> None:
    x, y, weight = problem(0, 30, 4, 0.1)
    _, constant = observed(x, y).solved(weight[None], constant=False)
    assert not bool(constant.any())


def test_targets_set_anew_get_a_small_ridge_whatever_was_chosen() -> None:
    x, y, weight = problem(5, 20, 8, 3.0)
    folds = observed(x, y)
    folds.solved(weight[None], constant=True)
    assert folds.chosen > 2
    again = folds.retargeted()
    again.observe(nn.Linear(8, 3), x, -y)
    got, constant = again.solved(weight[None], constant=True)
    wanted, shift = by_hand(x, -y, weight, 1e-2)
    assert torch.allclose(got[0], wanted, rtol=1e-5, atol=1e-7)
    assert torch.allclose(constant[0], shift, rtol=1e-5, atol=1e-6)
