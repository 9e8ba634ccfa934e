from __future__ import annotations

import numpy as np
import pytest

from compressor.search.kernels import Kernels, Marks
from compressor.search.surrogate import Surrogate

SIZES = (4, 3, 1, 5)


def _networks(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, n, count) for n in SIZES], axis=1)


def _additive(networks: np.ndarray) -> np.ndarray:
    tables = [np.random.default_rng(i).normal(size=n) for i, n in enumerate(SIZES)]
    return sum(table[networks[:, i]] for i, table in enumerate(tables))


def _kernels(paired: bool) -> Kernels:
    """With or without interactions of neighbouring layers."""
    kernels = Kernels(SIZES if paired else [*SIZES, *[40] * 4])
    assert kernels.paired == paired
    return kernels


def _some(kernels: Kernels, count: int, seed: int = 0) -> Marks:
    networks = _networks(count, seed)
    more = np.random.default_rng(seed).integers(0, 40, (count, kernels.layers - len(SIZES)))
    return kernels.marked(np.concatenate([networks, more], axis=1))


@pytest.mark.parametrize("paired", [True, False])
def test_covariances_are_symmetric_and_fit_their_variances(paired: bool) -> None:
    kernels = _kernels(paired)
    some = _some(kernels, 30)
    for amounts in np.eye(len(kernels.prior)):
        part, variances = kernels.covariance(some, some, amounts)
        np.testing.assert_allclose(part, part.T, atol=1e-12)
        np.testing.assert_allclose(part.diagonal(), variances, atol=1e-12)
        assert (np.linalg.eigvalsh(part) > -1e-9).all()


@pytest.mark.parametrize("paired", [True, False])
def test_the_parts_add_up_to_the_covariance(paired: bool) -> None:
    kernels = _kernels(paired)
    some = _some(kernels, 20)
    amounts = np.random.default_rng(0).uniform(size=len(kernels.prior))
    common, own = np.split(amounts, [kernels.common])
    total = np.tensordot(common, kernels.between(some, some), 1) + kernels.own(some, some, own)
    np.testing.assert_allclose(kernels.covariance(some, some, amounts)[0], total, atol=1e-12)


def test_contents_of_own_parts_are_those_of_each_part() -> None:
    kernels = _kernels(paired=True)
    some, rng = _some(kernels, 9), np.random.default_rng(0)
    inverse, weights = rng.normal(size=(9, 9)), rng.normal(size=9)
    inverse += inverse.T
    fits, traces = kernels.own_contents(some, inverse, weights)
    for layer, one in enumerate(np.eye(kernels.layers)):
        part = kernels.own(some, some, one)
        assert fits[layer] == pytest.approx(weights @ part @ weights)
        assert traces[layer] == pytest.approx(np.trace(inverse @ part))


@pytest.mark.parametrize("paired", [True, False])
def test_draws_of_effects_have_the_covariance_of_their_parts(paired: bool) -> None:
    kernels = _kernels(paired)
    some, rng = _some(kernels, 6), np.random.default_rng(0)
    amounts = rng.uniform(size=len(kernels.prior))
    amounts[kernels.common - 2 : kernels.common] = 0  # these have no effects
    draws = np.stack([kernels.draw(amounts, rng).of(some.networks) for _ in range(4000)])
    expected, _ = kernels.covariance(some, some, amounts)
    spread = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    np.testing.assert_allclose((draws.T @ draws / 4000 - expected) / spread, 0, atol=0.1)


@pytest.mark.parametrize("paired", [True, False])
def test_effects_are_the_covariance_with_the_weighted_scores(paired: bool) -> None:
    kernels = _kernels(paired)
    some, others = _some(kernels, 8), _some(kernels, 5, seed=1)
    amounts = np.random.default_rng(0).uniform(size=len(kernels.prior))
    amounts[kernels.common - 2 : kernels.common] = 0
    weights = np.random.default_rng(1).normal(size=8)
    cross, _ = kernels.covariance(others, some, amounts)
    np.testing.assert_allclose(
        kernels.effects(some, weights, amounts).of(others.networks), cross @ weights, atol=1e-12
    )


@pytest.mark.parametrize("step", [1, 3])
def test_what_is_updated_is_what_would_be_computed_anew(step: int) -> None:
    networks, others = _networks(90), _networks(10, seed=3)
    scores = _additive(networks)
    model = Surrogate(SIZES, deterministic=False)
    renewals = 0
    for start in range(0, 90, step):
        before = model.amounts if start else None
        model.learn(networks[start : start + step], scores[: start + step])
        model.pretend(others[:2])
        renewals += before is None or not np.array_equal(before, model.amounts)
    assert 10 < renewals < 90 / step
    model.learn(networks[90:], scores)
    known = model._kernels.marked(networks)
    new = model._kernels.marked(others)
    amounts, level = model.amounts, model._level

    def covariance(one: Marks, two: Marks) -> np.ndarray:
        return model._kernels.covariance(one, two, amounts[:-1])[0] + level

    inverse = np.linalg.inv(covariance(known, known) + amounts[-1] * np.eye(90))
    cross = covariance(new, known)
    mean, deviation = model.predict(others)
    rest = scores - scores.mean()
    np.testing.assert_allclose(mean, scores.mean() + cross @ inverse @ rest, rtol=1e-8)
    variance = covariance(new, new) - cross @ inverse @ cross.T
    np.testing.assert_allclose(deviation**2, variance.diagonal(), rtol=1e-6)


@pytest.mark.parametrize("step", [1, 40])
def test_learns_an_additive_score_from_few_networks(step: int) -> None:
    networks = np.unique(_networks(200), axis=0)
    networks = networks[np.random.default_rng(0).permutation(len(networks))]
    model = Surrogate(SIZES, deterministic=True)
    scores = _additive(networks)
    for start in range(0, 40, step):
        model.learn(networks[start : start + step], scores[: start + step])
    mean, deviation = model.predict(networks[40:])
    assert np.corrcoef(mean, scores[40:])[0, 1] > 0.97
    assert np.mean(np.abs(mean - scores[40:]) < 2 * deviation) > 0.85
    fitted, spread = model.fitted()
    np.testing.assert_allclose(fitted, scores[:40], atol=0.05)
    assert (spread < 0.05).all()


def test_draws_scatter_about_the_expectation() -> None:
    networks, others = _networks(25), _networks(10, seed=3)
    model = Surrogate(SIZES, deterministic=False)
    rng = np.random.default_rng(0)
    model.learn(networks, _additive(networks) + rng.normal(0, 0.1, 25))
    draws = np.stack([model.draw(rng).of(others) for _ in range(1500)])
    expected = model.effects().of(others)
    error = np.abs(draws.mean(axis=0) - expected) / draws.std(axis=0)
    assert (error < 5 / np.sqrt(1500)).all()


def test_repeats_narrow_what_is_believed_of_a_network() -> None:
    networks = np.unique(_networks(30), axis=0)
    rng = np.random.default_rng(0)
    scores = _additive(networks) + rng.normal(0, 0.5, len(networks))
    model = Surrogate(SIZES, deterministic=False)
    model.learn(networks, scores)
    _, before = model.fitted()
    again = np.repeat(networks[:1], 8, axis=0)
    model.learn(again, np.append(scores, _additive(again) + rng.normal(0, 0.5, 8)))
    _, after = model.fitted()
    assert after[0] < before[0]
    np.testing.assert_allclose(after[0], after[len(networks) :])


def test_pretending_narrows_without_moving_and_is_forgotten() -> None:
    networks, scores = _networks(20), _additive(_networks(20))
    model, other = Surrogate(SIZES, deterministic=True), np.array([[0, 2, 0, 4]])
    model.learn(networks[:19], scores[:19])
    mean, deviation = model.predict(other)
    model.pretend(other)
    later, narrowed = model.predict(other)
    np.testing.assert_allclose(later, mean)
    assert narrowed < deviation / 5
    model.learn(networks[19:], scores)
    assert len(model.fitted()[0]) == 20


def test_equal_scores_are_no_trouble() -> None:
    model = Surrogate(SIZES, deterministic=True)
    model.learn(_networks(5), np.full(5, 90.0))
    mean, deviation = model.predict(_networks(5, seed=2))
    np.testing.assert_allclose(mean, 90)
    assert np.isfinite(deviation).all()
