from __future__ import annotations

import numpy as np
import pytest

from compressor.kernels import Kernels
from compressor.surrogate import Surrogate

SIZES = (4, 3, 1, 5)


def _networks(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, n, count) for n in SIZES], axis=1)


def _additive(networks: np.ndarray) -> np.ndarray:
    tables = [np.random.default_rng(i).normal(size=n) for i, n in enumerate(SIZES)]
    return sum(table[networks[:, i]] for i, table in enumerate(tables))


def test_covariances_are_symmetric_and_fit_their_variances() -> None:
    kernels, networks = Kernels(SIZES), _networks(30)
    parts = kernels.between(networks, networks)
    assert parts.shape == (len(kernels.prior), 30, 30)
    np.testing.assert_allclose(parts, parts.transpose(0, 2, 1), atol=1e-12)
    np.testing.assert_allclose(
        np.diagonal(parts, axis1=1, axis2=2), kernels.variances(networks), atol=1e-12
    )
    assert (np.linalg.eigvalsh(parts) > -1e-9).all()


def test_draws_of_effects_have_the_covariance_of_their_parts() -> None:
    kernels, networks = Kernels(SIZES), _networks(6)
    rng = np.random.default_rng(0)
    amounts = np.append(rng.uniform(size=len(kernels.prior) - 1), 0.0)
    draws = np.stack([kernels.draw(amounts, rng).of(networks) for _ in range(4000)])
    expected = np.tensordot(amounts, kernels.between(networks, networks), 1)
    spread = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    np.testing.assert_allclose((draws.T @ draws / 4000 - expected) / spread, 0, atol=0.1)


def test_effects_are_the_covariance_with_the_weighted_scores() -> None:
    kernels, networks, others = Kernels(SIZES), _networks(8), _networks(5, seed=1)
    amounts = np.append(np.random.default_rng(0).uniform(size=len(kernels.prior) - 1), 0.0)
    weights = np.random.default_rng(1).normal(size=8)
    cross = np.tensordot(amounts, kernels.between(others, networks), 1)
    np.testing.assert_allclose(
        kernels.effects(networks, weights, amounts).of(others), cross @ weights, atol=1e-12
    )


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
